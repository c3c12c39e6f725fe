// PID 1 of the test guests, compiled on its own by the tests (static, no crates).
// The file /mode says what it does.
use std::{
    ffi::{CString, c_char, c_int, c_long, c_ulong, c_void},
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::fd::{AsRawFd, FromRawFd},
    thread::sleep,
    time::Duration,
};

unsafe extern "C" {
    fn mount(s: *const c_char, t: *const c_char, f: *const c_char, o: c_ulong, d: *const c_void) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn connect(fd: c_int, address: *const c_void, length: u32) -> c_int;
    fn bind(fd: c_int, address: *const c_void, length: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, length: *mut u32) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn mount_at(kind: &str, at: &str) {
    std::fs::create_dir_all(at).expect("mkdir");
    let (kind, at) = (CString::new(kind).unwrap(), CString::new(at).unwrap());
    unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

fn load_modules() {
    let list = std::fs::read_to_string("/modules").unwrap_or_default();
    for name in list.lines() {
        let file = File::open(format!("/{name}")).expect(name);
        let empty = c"";
        let done = unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), empty.as_ptr(), 0) };
        if done != 0 {
            println!("MODULE-FAILED {name} {}", std::io::Error::last_os_error());
        }
    }
}

#[cfg(target_arch = "x86_64")]
const FINIT_MODULE: c_long = 313;
#[cfg(target_arch = "aarch64")]
const FINIT_MODULE: c_long = 273;

fn disks() {
    for name in ["vda", "vdb", "vdc"] {
        let serial = std::fs::read_to_string(format!("/sys/block/{name}/serial"));
        let Ok(serial) = serial else { continue };
        let path = format!("/dev/{name}");
        let mut start = [0; 5];
        let read = File::open(&path).and_then(|mut f| f.read_exact(&mut start));
        println!("DISK {name} serial={} read={read:?} start={}", serial.trim(), start.escape_ascii());
        let wrote = OpenOptions::new().write(true).open(&path).and_then(|mut f| {
            f.seek(std::io::SeekFrom::Start(4096))?;
            f.write_all(b"written by the guest")?;
            f.sync_all()
        });
        println!("DISK {name} write={}", if wrote.is_ok() { "ok" } else { "refused" });
    }
}

/// Shows the interfaces and raises eth0, which only then knows of a carrier.
fn interfaces() {
    for entry in std::fs::read_dir("/sys/class/net").unwrap() {
        println!("NET {}", entry.unwrap().file_name().to_string_lossy());
    }
    // struct ifreq with SIOCSIFFLAGS, IFF_UP.
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"eth0");
    request[16] = 1;
    unsafe {
        let fd = socket(2, 2, 0);
        ioctl(fd, 0x8914, request.as_mut_ptr());
    }
}

/// Gives eth0 the address 10.0.2.15/24 and the gateway 10.0.2.2.
fn take_address() {
    // struct sockaddr_in: family, port, address.
    let inet = |address: [u8; 4]| {
        let mut socket = [0u8; 16];
        socket[0..2].copy_from_slice(&2u16.to_ne_bytes());
        socket[4..8].copy_from_slice(&address);
        socket
    };
    unsafe {
        let fd = socket(2, 2, 0);
        // SIOCSIFADDR, SIOCSIFNETMASK.
        for (number, value) in [(0x8916, [10, 0, 2, 15]), (0x891c, [255, 255, 255, 0])] {
            let mut request = [0u8; 40];
            request[..4].copy_from_slice(b"eth0");
            request[16..32].copy_from_slice(&inet(value));
            println!("ADDRESS {}", ioctl(fd, number, request.as_mut_ptr()));
        }
        // struct rtentry: pad, destination, gateway, mask, flags (RTF_UP | RTF_GATEWAY); SIOCADDRT.
        let mut route = [0u8; 120];
        route[8..24].copy_from_slice(&inet([0; 4]));
        route[24..40].copy_from_slice(&inet([10, 0, 2, 2]));
        route[40..56].copy_from_slice(&inet([0; 4]));
        route[56..58].copy_from_slice(&3u16.to_ne_bytes());
        println!("ROUTE {}", ioctl(fd, 0x890b, route.as_mut_ptr()));
    }
}

/// Reads all that a TCP server has to say.
fn fetch(target: &str) {
    take_address();
    let mut page = String::new();
    let fetched = std::net::TcpStream::connect(target).and_then(|mut stream| {
        stream.write_all(b"GET\n")?;
        stream.read_to_string(&mut page)
    });
    println!("FETCHED {fetched:?}");
}

/// struct sockaddr_vm, linux/vm_sockets.h: family, reserved, port, CID, zeros.
fn address(cid: u32, port: u32) -> [u8; 16] {
    let mut address = [0u8; 16];
    address[0..2].copy_from_slice(&40u16.to_ne_bytes());
    address[4..8].copy_from_slice(&port.to_ne_bytes());
    address[8..12].copy_from_slice(&cid.to_ne_bytes());
    address
}

/// A connection to a host port, as a file.
fn vsock(port: u32) -> File {
    let address = address(2, port);
    unsafe {
        let fd = socket(40, 1, 0);
        assert!(fd >= 0, "no vsock");
        let connected = connect(fd, address.as_ptr().cast(), 16);
        if connected != 0 {
            println!("VSOCK-REFUSED {}", std::io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    }
}

/// Sends back what comes, and its end after the other's.
fn echo(mut stream: File) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    unsafe { shutdown(stream.as_raw_fd(), 1) };
    // The host closes its side when it has everything.
    let _ = stream.read(&mut buffer);
}

/// Echoes at a port of the guest, to one after the other.
fn serve(port: u32) {
    // VMADDR_CID_ANY.
    let address = address(u32::MAX, port);
    let fd = unsafe { socket(40, 1, 0) };
    let bound = unsafe { bind(fd, address.as_ptr().cast(), 16) };
    let listening = unsafe { listen(fd, 8) };
    assert!(bound == 0 && listening == 0, "cannot listen");
    std::thread::spawn(move || loop {
        let taken = unsafe { accept(fd, std::ptr::null_mut(), std::ptr::null_mut()) };
        if taken < 0 {
            return;
        }
        let stream = unsafe { File::from_raw_fd(taken) };
        std::thread::spawn(move || echo(stream));
    });
}

fn resources() {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    println!("CPUS {}", cpus.lines().filter(|line| line.starts_with("processor")).count());
    println!("MEMORY-KIB {}", memory_kib("MemTotal:"));
}

fn memory_kib(what: &str) -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn typed() {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    println!("TYPED {read:?} <{}>", line.trim_end());
}

/// Counts, and tells when the network's carrier changes, and much of the memory.
fn beat() -> ! {
    let (mut carrier, mut free) = (String::new(), 0);
    for n in 0u64.. {
        println!("BEAT {n}");
        let now = std::fs::read_to_string("/sys/class/net/eth0/carrier").unwrap_or_default();
        if now != carrier {
            carrier = now;
            println!("CARRIER {}", carrier.trim());
        }
        let left = memory_kib("MemFree:");
        if left.abs_diff(free) >= 4 * 1024 {
            free = left;
            println!("FREE-KIB {free}");
        }
        sleep(Duration::from_millis(50));
    }
    unreachable!()
}

fn hello() -> File {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let json = format!(
        r#"{{"type":"hello","protocol":1,"kernel_release":"{}","kernel_ms":1}}"#,
        release.trim()
    );
    let mut frame = (json.len() as u32 + 1).to_be_bytes().to_vec();
    frame.push(10);
    frame.extend(json.as_bytes());
    let mut stream = vsock(1023);
    println!("HELLO {:?}", stream.write_all(&frame));
    stream
}

/// Goes into a root that can be left again, which the first one cannot, and runs the test program
/// there, in a group beside which there may be others with limits.
fn run_program() {
    mount_at("tmpfs", "/new");
    for line in std::fs::read_to_string("/files").expect("files").lines() {
        let (name, to) = line.split_once(' ').expect("a name and a place");
        let to = std::path::PathBuf::from(format!("/new{to}"));
        std::fs::create_dir_all(to.parent().expect("a directory")).expect("mkdir");
        std::fs::copy(format!("/{name}"), to).expect("copy");
        std::fs::remove_file(format!("/{name}")).expect("remove");
    }
    for empty in ["/new/tmp", "/new/usr"] {
        std::fs::create_dir(empty).expect("mkdir");
    }
    for (kind, at) in [("proc", "/new/proc"), ("sysfs", "/new/sys"), ("devtmpfs", "/new/dev")] {
        mount_at(kind, at);
    }
    let groups = "/new/sys/fs/cgroup";
    mount_at("cgroup2", groups);
    std::fs::write(format!("{groups}/cgroup.subtree_control"), "+cpu +memory +pids").expect("controllers");
    std::fs::create_dir(format!("{groups}/session")).expect("mkdir");
    std::fs::write(format!("{groups}/session/cgroup.procs"), "1").expect("move into a group");
    std::env::set_current_dir("/new").expect("chdir");
    // MS_MOVE.
    let moved = unsafe { mount(c".".as_ptr(), c"/".as_ptr(), std::ptr::null(), 8192, std::ptr::null()) };
    let moved = moved == 0 && unsafe { chroot(c".".as_ptr()) } == 0;
    let ended = std::process::Command::new("/program").arg("in-a-guest").status();
    println!("PROGRAM moved={moved} {ended:?}");
}

fn main() {
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    mount_at("devtmpfs", "/dev");
    load_modules();
    let mode = std::fs::read_to_string("/mode").unwrap_or_default();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("GUEST-IS-UP mode={mode} uptime={}", uptime.split(' ').next().unwrap());
    match mode.as_str() {
        "hello" => {}
        target if target.starts_with("fetch ") => {
            interfaces();
            fetch(target.strip_prefix("fetch ").unwrap());
        }
        "disks" => {
            disks();
            interfaces();
        }
        "beat" => {
            let _stream = std::fs::metadata("/sys/class/net/eth0").is_err().then(hello);
            interfaces();
            beat();
        }
        conform if conform.starts_with("conform") => {
            resources();
            disks();
            interfaces();
            if let Some(target) = conform.strip_prefix("conform ") {
                fetch(target);
            }
            serve(1024);
            let stream = vsock(1023);
            std::thread::spawn(move || echo(stream));
            std::thread::spawn(|| loop {
                typed();
            });
            println!("READY");
            beat();
        }
        "flood" => {
            let line = "0123456789abcdef".repeat(16);
            for n in 0..200 {
                println!("FLOOD {n} {line}");
            }
            interfaces();
            println!("FLOOD-DONE");
        }
        "probe" => {
            let mut stream = hello();
            println!("HELLO-SAID");
            // Until the host hangs up.
            let end = stream.read(&mut [0; 16]);
            println!("HOST-GONE {end:?}");
        }
        "program" => run_program(),
        "poweroff" => unsafe {
            // LINUX_REBOOT_CMD_POWER_OFF.
            reboot(0x4321_fedc);
            println!("STILL-ON");
        },
        "panic" => std::process::exit(3),
        other => println!("UNKNOWN-MODE {other}"),
    }
    println!("GUEST-IS-DONE");
    let mut console = File::options().write(true).open("/dev/console").unwrap();
    console.flush().unwrap();
    // What is still in the serial port's buffer is sent before the power goes.
    sleep(Duration::from_millis(100));
    unsafe {
        // LINUX_REBOOT_CMD_RESTART: every machine type ends at a reset.
        reboot(0x0123_4567);
    }
}
