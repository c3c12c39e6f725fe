//! What a monitor that a guest took over would try. Each attempt is told on its console.

use std::{
    fmt::Debug,
    fs::{File, OpenOptions},
    io,
    net::{SocketAddr, TcpStream},
    os::{fd::AsRawFd, linux::net::SocketAddrExt, unix::net::UnixStream},
    time::Duration,
};

/// The words before an attempt that went well.
pub(crate) const ESCAPED: &str = "ESCAPED";
/// The word at the end of all attempts.
pub(crate) const TRIED: &str = "all was tried";

/// `targets`: a process and a TCP port of the host; an abstract socket is called by the port, too.
pub(crate) fn attempt(targets: &str) {
    let (process, port) = targets.split_once('-').unwrap();
    let (pid, port): (i32, u16) = (process.parse().unwrap(), port.parse().unwrap());
    for path in [
        "/etc/shadow",
        "/etc/passwd",
        "/root",
        "/home",
        "/dev/mem",
        "/dev/vda",
    ] {
        tell(&format!("open {path}"), File::open(path));
    }
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open("/usr/escaped");
    tell("write below /usr", written);
    tell("write below /", File::create("/escaped"));
    tell(
        "see a process of the host",
        File::open(format!("/proc/{pid}/cmdline")),
    );
    // SAFETY: integers and null pointers only; the kernel checks them all.
    #[allow(unsafe_code)]
    let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
    tell("trace a process", outcome(traced));
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let signalled = unsafe { libc::kill(pid, 0) };
    tell("signal a process", outcome(signalled.into()));
    // SAFETY: the strings are C strings that live past the call.
    #[allow(unsafe_code)]
    let mounted = unsafe {
        let (none, tmpfs) = (c"none".as_ptr(), c"tmpfs".as_ptr());
        libc::mount(none, c"/dev".as_ptr(), tmpfs, 0, std::ptr::null())
    };
    tell("mount a file system", outcome(mounted.into()));
    // SAFETY: a C string and integers.
    #[allow(unsafe_code)]
    let made = unsafe {
        let memory = libc::makedev(1, 1);
        libc::mknod(c"/dev/mem".as_ptr(), libc::S_IFCHR | 0o600, memory)
    };
    tell("make a device", outcome(made.into()));
    // SAFETY: a C string.
    #[allow(unsafe_code)]
    let moved = unsafe { libc::chroot(c"/proc/self".as_ptr()) };
    tell("move its root", outcome(moved.into()));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connected = TcpStream::connect_timeout(&address, Duration::from_secs(2));
    tell("connect to the host's loopback", connected);
    let name = std::os::unix::net::SocketAddr::from_abstract_name(port.to_string()).unwrap();
    tell(
        "connect to an abstract socket",
        UnixStream::connect_addr(&name),
    );
    // What lies beside the machine's own directory is the supervisor's.
    let mut api = std::env::args().skip_while(|argument| argument != "--api-sock");
    let api = std::path::PathBuf::from(api.nth(1).unwrap());
    let beside = api.ancestors().nth(2).unwrap().join(BESIDE);
    tell("connect to the supervisor", UnixStream::connect(beside));
    println!("{TRIED}");
}

/// A socket beside the machine's own directory.
pub(crate) const BESIDE: &str = "control.sock";

/// What it says when it has opened its network card as Firecracker does.
pub(crate) const TAP_TAKEN: &str = "the tap is taken";

/// Attaches to the tap as Firecracker does.
pub(crate) fn take_tap(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // struct ifreq: the name, and IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&0x5002_u16.to_ne_bytes());
    // SAFETY: TUNSETIFF takes an ifreq, which lives through the call.
    #[allow(unsafe_code)]
    let taken = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if taken == 0 {
        Ok(tun)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts a filter of system calls on the whole process after its answer, as Firecracker does.
pub(crate) fn filter_late() {
    std::thread::sleep(Duration::from_millis(50));
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW.
    let mut allow = libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut allow,
    };
    // SAFETY: the program and its one instruction live through the call, which copies them.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// What it says when it may start no more threads; their number follows.
pub(crate) const MULTIPLIED: &str = "the last thread was number ";

/// Starts threads until it may not.
pub(crate) fn multiply() {
    let mut number = 0;
    loop {
        let thread = std::thread::Builder::new().stack_size(16 * 1024);
        let thread = thread.spawn(|| std::thread::sleep(Duration::from_secs(600)));
        if thread.is_err() || number == 10_000 {
            println!("{MULTIPLIED}{number}.");
            return;
        }
        number += 1;
    }
}

/// What a call of the C library said.
fn outcome(done: libc::c_long) -> io::Result<()> {
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn tell<T, E: Debug>(what: &str, outcome: Result<T, E>) {
    match outcome {
        Ok(_) => println!("{ESCAPED}: {what}"),
        Err(error) => println!("refused: {what}: {error:?}"),
    }
}
