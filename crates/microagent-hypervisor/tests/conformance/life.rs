//! Lifecycle, console, vsock, disks, network, pause, crash and resources.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, UdpSocket},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::{Duration, Instant},
};

use microagent_hypervisor::{Error, Exit, Machine, vsock};
use microagent_protocol::NetworkMode;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};

use crate::{
    common::{Guest, alive},
    subject::Subject,
};

/// The guest's port that echoes, and the host's that the guest connects to.
pub(crate) const GUEST_PORT: u32 = 1024;
pub(crate) const HOST_PORT: u32 = 1023;

/// What the host's server says, more than fits into one packet.
const PAGE: &[u8] = b"0123456789abcdef";
const PAGES: usize = 1000;

/// A guest port where nobody listens.
const DEAF_PORT: u32 = 1999;

/// One machine with everything, from its launch to its kill.
pub(crate) fn whole(subject: &Subject) {
    let can = subject.driver.capabilities();
    let outside = Outside::open();
    let mode = match can.user_network {
        true => format!("conform {}", outside.address),
        false => "conform".to_owned(),
    };
    let mut guest = subject
        .guest(&mode)
        .with_joined_disk("base")
        .with_disk("scratch", false)
        .with_disk("extra-1", false);
    if can.user_network {
        guest.spec.network = NetworkMode::User;
    }
    let hello = vsock::listen(&guest.spec.vsock.uds, HOST_PORT).unwrap();
    let before = files(&guest);
    let machine = subject.launch(&guest);
    let pid = machine.vmm().pid;
    assert!(alive(pid));
    assert_eq!(machine.wait(Duration::ZERO).unwrap(), None);
    println!("held back by: {}", machine.confinement());
    let console = guest.wait_for("READY");

    // A disk of several files is made one where that is needed, and nowhere else.
    let made = files(&guest).into_iter();
    let made = made.filter(|name| name != "console.log" && !before.contains(name));
    assert_eq!(made.count() == 0, can.joined_disks);
    resources(subject, &console);
    disks(subject, &guest, &console);
    network(&guest, &outside, &console);
    connections(subject, &*machine, &hello);
    serial(subject, &guest, &*machine);
    freezes(subject, &guest, &*machine);
    severs(subject, &guest, &*machine);

    machine.kill().unwrap();
    let killed = Some(Exit::Signal(9));
    assert_eq!(machine.wait(subject.patience).unwrap(), killed);
    assert_eq!(machine.wait(subject.patience).unwrap(), killed);
    assert!(!machine.ended_by_guest());
    machine.kill().unwrap();
    assert!(machine.pause().is_err() && machine.console().is_err());
    drop(machine);
    assert!(!alive(pid));
    // The listener's own socket is its owner's to remove.
    let left = [guest.dir.path().join(format!("run/v.sock_{HOST_PORT}"))];
    assert_eq!(guest.leftovers(), left);
}

/// What is in the guest's directory.
fn files(guest: &Guest) -> Vec<String> {
    let entries = fs::read_dir(guest.dir.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The value after the word on the console.
fn value<'c>(console: &'c str, word: &str) -> &'c str {
    let line = console.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word:?} in {console}"))
        .trim()
}

fn resources(subject: &Subject, console: &str) {
    assert_eq!(value(console, "CPUS"), subject.vcpus.to_string());
    let seen: u32 = value(console, "MEMORY-KIB").parse().unwrap();
    let all = subject.memory * 1024;
    // The kernel takes its part.
    assert!(seen <= all && seen > all / 2, "{seen} of {all} KiB");
}

/// In their order, each with its content and its mode.
fn disks(subject: &Subject, guest: &Guest, console: &str) {
    for (name, serial, write) in [
        ("vda", "base", "refused"),
        ("vdb", "scratch", "ok"),
        ("vdc", "extra-1", "ok"),
    ] {
        let shown = value(console, &format!("DISK {name} serial="));
        let (seen, read) = shown.split_once(' ').unwrap();
        if subject.driver.capabilities().disk_serials {
            assert_eq!(seen, serial, "{name}");
        } else {
            assert_ne!(seen, serial, "{name}: it can, and does not say so");
        }
        let start = format!("read=Ok(()) start={}", &serial[..4]);
        assert!(read.starts_with(&start), "{name}: {read}");
        assert_eq!(value(console, &format!("DISK {name} write=")), write);
    }
    // The second file of the joined disk begins at its second sector.
    for (file, at, written) in [
        ("tail", 4096 - 512, false),
        ("scratch", 4096, true),
        ("extra-1", 4096, true),
    ] {
        let disk = fs::read(guest.dir.path().join(file)).unwrap();
        let there = disk[at..].starts_with(b"written by the guest");
        assert_eq!(there, written, "{file}");
    }
}

/// What a guest that has a network can reach: a server of this host, at its outer address.
struct Outside {
    address: SocketAddr,
}

impl Outside {
    fn open() -> Self {
        let server = TcpListener::bind((outer_address(), 0)).unwrap();
        let address = server.local_addr().unwrap();
        // It ends with the test program.
        thread::spawn(move || {
            for stream in server.incoming().flatten() {
                let mut stream = BufReader::new(stream);
                let mut asked = String::new();
                if stream.read_line(&mut asked).is_ok() {
                    let _ = stream.get_ref().write_all(&PAGE.repeat(PAGES));
                }
            }
        });
        Self { address }
    }
}

/// This host's address on its way out.
fn outer_address() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // Nothing is sent.
    socket
        .connect((Ipv4Addr::new(203, 0, 113, 1), 9))
        .expect("a route out");
    socket.local_addr().unwrap().ip()
}

fn network(guest: &Guest, outside: &Outside, console: &str) {
    assert!(console.contains("NET lo"), "{console}");
    let connected = guest.spec.network == NetworkMode::User;
    assert_eq!(console.contains("NET eth0"), connected, "{console}");
    if connected {
        guest.wait_for("CARRIER 1");
        let fetched = format!("Ok({})", PAGE.len() * PAGES);
        assert_eq!(value(console, "FETCHED"), fetched, "{}", outside.address);
    }
}

/// Both ways, and each half ended on its own where that is declared.
fn connections(subject: &Subject, machine: &dyn Machine, hello: &UnixListener) {
    let halves = subject.driver.capabilities().half_close;
    let (from_guest, _) = hello.accept().unwrap();
    let to_guest = connect(subject, machine).unwrap();
    for stream in [from_guest, to_guest] {
        stream.set_read_timeout(Some(subject.patience)).unwrap();
        let sent: Vec<u8> = (0..100_000_u32).map(|at| (at ^ (at >> 9)) as u8).collect();
        let mut writer = stream.try_clone().unwrap();
        let expected = sent.clone();
        let sending = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            if halves {
                writer.shutdown(Shutdown::Write).unwrap();
            }
        });
        let mut back = vec![0; expected.len()];
        (&stream).read_exact(&mut back).unwrap();
        assert!(back == expected);
        sending.join().unwrap();
        // The other half ends after this one, or with it.
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&stream).read(&mut back).unwrap(), 0);
    }
    if !halves {
        let mut stream = connect(subject, machine).unwrap();
        stream.write_all(b"lost").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(subject.patience)).unwrap();
        let back = stream.read(&mut [0; 8]);
        assert!(
            matches!(back, Ok(0)),
            "it can, and does not say so: {back:?}"
        );
    }
    let deadline = Instant::now() + subject.patience;
    assert!(vsock::connect(machine.vsock(), DEAF_PORT, deadline).is_err());
}

fn connect(subject: &Subject, machine: &dyn Machine) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + subject.patience;
    vsock::connect(machine.vsock(), GUEST_PORT, deadline)
}

/// What is typed is read by the guest, and what it writes comes to who attached and to the log.
fn serial(subject: &Subject, guest: &Guest, machine: &dyn Machine) {
    let port = machine.console();
    if !subject.driver.capabilities().console {
        assert!(matches!(port, Err(Error::Unsupported(_))), "{port:?}");
        return;
    }
    let mut port = port.unwrap();
    port.output
        .set_read_timeout(Some(subject.patience))
        .unwrap();
    port.input.write_all(b"hello there\r").unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains("<hello there>") {
        let count = port.output.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    guest.wait_for("<hello there>");
}

fn last_beat(console: &str) -> u64 {
    let beats = console
        .lines()
        .filter_map(|line| line.strip_prefix("BEAT "));
    beats.filter_map(|beat| beat.parse().ok()).max().unwrap()
}

/// That the guest runs, whatever it said before.
pub(crate) fn beats_on(guest: &Guest) {
    guest.wait_for("BEAT ");
    guest.wait_for(&format!("BEAT {}\n", last_beat(&guest.console()) + 2));
}

fn freezes(subject: &Subject, guest: &Guest, machine: &dyn Machine) {
    if !subject.driver.capabilities().pause {
        assert!(matches!(machine.pause(), Err(Error::Unsupported(_))));
        assert!(matches!(machine.resume(), Err(Error::Unsupported(_))));
        return;
    }
    guest.wait_for("BEAT 2");
    machine.pause().unwrap();
    machine.pause().unwrap();
    // What it had already printed may still be on its way; one that is not frozen never stops.
    let deadline = Instant::now() + subject.patience;
    let frozen = loop {
        let said = guest.console();
        thread::sleep(Duration::from_secs(1));
        if guest.console() == said {
            break said;
        }
        assert!(Instant::now() < deadline, "a frozen guest speaks on");
    };
    machine.resume().unwrap();
    machine.resume().unwrap();
    guest.wait_for(&format!("BEAT {}\n", last_beat(&frozen) + 3));
}

/// At once and for good; the machine goes on.
fn severs(subject: &Subject, guest: &Guest, machine: &dyn Machine) {
    if !subject.driver.capabilities().sever {
        assert!(matches!(machine.sever(), Err(Error::Unsupported(_))));
        return;
    }
    let mut stream = connect(subject, machine).unwrap();
    // Frozen first, as a quarantine does.
    machine.pause().unwrap();
    machine.sever().unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    assert!(vsock::connect(machine.vsock(), GUEST_PORT, deadline).is_err());
    assert_eq!(machine.wait(Duration::ZERO).unwrap(), None, "it lives on");
    if !subject.driver.capabilities().sever_ends_connections {
        // Nothing moves on it, for the guest is frozen.
        stream
            .set_read_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        assert!(stream.write_all(b"anybody?").is_ok());
        let waited = stream.read(&mut [0]).unwrap_err();
        assert_eq!(waited.kind(), std::io::ErrorKind::WouldBlock);
        return;
    }
    // The end of the stream or a reset: either way nothing can come any more.
    stream.set_read_timeout(Some(subject.patience)).unwrap();
    let ended = stream.read(&mut [0]);
    assert!(
        matches!(&ended, Ok(0))
            || ended.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    );
    machine.resume().unwrap();
    if guest.spec.network == NetworkMode::User {
        guest.wait_for("CARRIER 0");
    }
    beats_on(guest);
}

/// A guest that prints more than the log takes, has no network, and resets its machine.
pub(crate) fn ended_by_guest(subject: &Subject) {
    const LIMIT: usize = 16 * 1024;
    let mut guest = subject.guest("flood");
    guest.spec.console.limit = LIMIT as u64;
    assert_eq!(subject.driver.network_plan(NetworkMode::Isolated), None);
    let machine = subject.launch(&guest);
    assert_eq!(machine.wait(subject.patience).unwrap(), Some(Exit::Code(0)));
    assert!(machine.ended_by_guest());
    // Dropping it waits for the last bytes.
    drop(machine);
    let mut older = guest.spec.console.log.clone().into_os_string();
    older.push(".1");
    let newer = fs::read(&guest.spec.console.log).unwrap();
    let older = fs::read(older).unwrap();
    assert!(older.len() == LIMIT && newer.len() <= LIMIT);
    let kept = String::from_utf8([older, newer].concat()).unwrap();
    assert!(kept.contains("FLOOD-DONE") && kept.contains("GUEST-IS-DONE"));
    assert!(
        kept.contains("NET lo") && !kept.contains("NET eth0"),
        "{kept}"
    );
    assert!(!kept.contains("FLOOD 0 "));
    assert!(guest.leftovers().is_empty());
}

pub(crate) fn panics(subject: &Subject) {
    let guest = subject.guest("panic");
    let machine = subject.launch(&guest);
    let exit = machine.wait(subject.patience).unwrap();
    assert_eq!(exit, Some(Exit::Code(0)), "{}", guest.console());
    assert!(machine.ended_by_guest());
    drop(machine);
    assert!(
        guest.console().contains("Kernel panic"),
        "{}",
        guest.console()
    );
    assert!(guest.leftovers().is_empty());
}

/// Killed by another hand, and dropped; neither has to have booted.
pub(crate) fn crashes(subject: &Subject) {
    let guest = subject.guest("hello");
    let machine = subject.launch(&guest);
    let vmm = machine.vmm().pid;
    kill_process(Pid::from_raw(vmm.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(machine.exit_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
    assert_eq!(machine.wait(Duration::ZERO).unwrap(), Some(Exit::Signal(9)));
    assert!(!machine.ended_by_guest());
    assert!(machine.pause().is_err());
    drop(machine);
    assert!(guest.leftovers().is_empty());

    let machine = subject.launch(&guest);
    let pid = machine.vmm().pid;
    drop(machine);
    assert!(!alive(pid) && guest.leftovers().is_empty());
}
