//! What only the QEMU driver has, on real guests; what every driver promises is in `conformance`.
//! Needs QEMU and the distribution's kernel package, and nothing else of the host.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Guest, alive, tcg};
use microagent_hypervisor::{
    Error, Exit, Hypervisor, Machine,
    network::Passt,
    qemu::{MachineType, QemuMachine},
};
use microagent_protocol::{
    ConfinementLayer as Layer, ConfinementMode, NetworkMode, wiring::MAX_DISKS,
};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_boots_speaks_and_ends() {
    let guest = Guest::new("hello");
    let start = Instant::now();
    let machine = guest.launch();
    let launched = start.elapsed();
    let console = guest.wait_for("GUEST-IS-DONE");
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0)));
    println!(
        "launched {launched:?}, ended {:?}\n{console}",
        start.elapsed()
    );
    // Waits for QEMU's last words; its process can be gone before they are read.
    assert!(machine.ended_by_guest());
    assert!(machine.run_state().reset);
    assert!(!console.contains("MODULE-FAILED"), "{console}");
    let pid = machine.vmm().pid;
    drop(machine);
    assert!(!alive(pid));
    assert!(guest.leftovers().is_empty());
}

#[test]
fn disks_come_in_order_with_their_serials_and_read_only_ones_refuse_writes() {
    for attempt in [0, 1] {
        let mut guest = Guest::new("disks")
            .with_joined_disk("base")
            .with_disk("scratch", false)
            .with_disk("extra-1", false);
        guest.spec.attempt = attempt;
        guest.spec.network = NetworkMode::User;
        let machine = guest.launch();
        let wanted = [MachineType::Microvm, MachineType::Q35][attempt as usize];
        assert_eq!(machine.machine_type(), wanted);
        let console = guest.wait_for("GUEST-IS-DONE");
        assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0)));
        for (name, serial, write) in [
            ("vda", "base", "refused"),
            ("vdb", "scratch", "ok"),
            ("vdc", "extra-1", "ok"),
        ] {
            let start = &serial[..4];
            assert!(
                console.contains(&format!(
                    "DISK {name} serial={serial} read=Ok(()) start={start}"
                )),
                "{console}"
            );
            assert!(
                console.contains(&format!("DISK {name} write={write}")),
                "{console}"
            );
        }
        assert!(
            console.contains("NET eth0") && console.contains("NET lo"),
            "{console}"
        );
        let written = |file: &str, at: usize| {
            let disk = fs::read(guest.dir.path().join(file)).unwrap();
            disk[at..].starts_with(b"written by the guest")
        };
        // The second file of the joined disk begins at its second sector.
        assert!(!written("tail", 4096 - 512));
        assert!(written("scratch", 4096) && written("extra-1", 4096));
    }
}

/// What has the most that a workspace may ask for fills the places there are; `vm::volumes` boots one.
#[test]
fn a_device_more_than_there_is_room_for_is_refused() {
    for attempt in [0, 1] {
        let mut guest = Guest::new("hello").with_disk("one", false);
        guest.spec.attempt = attempt;
        guest.spec.network = NetworkMode::User;
        let disk = guest.spec.disks[0].clone();
        guest.spec.disks.resize(2 + MAX_DISKS + 1, disk);
        let error = tcg().launch(&guest.spec).map(drop).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("room for 22 devices"), "{error}");
        assert!(guest.leftovers().is_empty());
    }
}

#[test]
fn power_off_and_panic_end_both_machine_types_and_are_told_apart() {
    for (mode, attempt) in [("poweroff", 0), ("poweroff", 1), ("panic", 0)] {
        let mut guest = Guest::new(mode);
        guest.spec.attempt = attempt;
        let machine = guest.launch();
        let exit = machine.wait(MINUTE).unwrap();
        assert_eq!(
            exit,
            Some(Exit::Code(0)),
            "{mode} {attempt}: {}",
            guest.console()
        );
        assert!(machine.ended_by_guest(), "{mode} {attempt}");
        assert_eq!(machine.run_state().powered_off, mode == "poweroff");
        assert_eq!(machine.run_state().reset, mode == "panic");
        let panicked = guest.console().contains("Kernel panic");
        assert_eq!(panicked, mode == "panic", "{}", guest.console());
    }
}

/// As when root runs it on an ordinary user's state directory: QEMU has no
/// capability to read it.
#[test]
fn a_kernel_in_another_users_private_directory_boots() {
    if !rustix::process::geteuid().is_root() {
        // Only root can have another user's files; for others there is nothing to show.
        return;
    }
    let mut guest = Guest::new("hello");
    let kernel = guest.dir.path().join("kernel");
    fs::copy(&guest.spec.kernel, &kernel).unwrap();
    guest.spec.kernel = kernel;
    for path in [guest.dir.path(), &guest.spec.kernel, &guest.spec.initramfs] {
        std::os::unix::fs::chown(path, Some(12345), Some(12345)).unwrap();
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let machine = guest.launch();
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0)));
    assert!(guest.console().contains("GUEST-IS-DONE"));
}

/// QEMU stands in for Firecracker: the same jail, the same namespaces, a tap in them, and a guest
/// that reaches a server of the host by it.
#[test]
fn a_guest_on_a_tap_in_its_monitors_namespaces_reaches_the_outside() {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    probe
        .connect("203.0.113.1:9")
        .expect("a route out of this host");
    let server = std::net::TcpListener::bind((probe.local_addr().unwrap().ip(), 0)).unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let _ = stream.read(&mut [0; 16]);
        stream
            .write_all(&b"0123456789abcdef".repeat(20_000))
            .unwrap();
    });
    let mut guest = Guest::new(&format!("fetch {address}"));
    guest.spec.network = NetworkMode::User;
    let passt = Passt::find(&std::env::var_os("PATH").unwrap()).unwrap();
    let driver = tcg().passt(Some(passt)).by_tap(true);
    let machine = match driver.launch_qemu(&guest.spec) {
        Ok(machine) => machine,
        Err(error @ Error::Unsupported(_)) => {
            testkit::skip_test(error);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let pid = machine.vmm().pid;
    let interfaces = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert!(
        interfaces.contains("tap0:") && !interfaces.contains("eth0:"),
        "{interfaces}"
    );
    assert!(machine.confinement().has(Layer::Network));
    let console = guest.wait_for("GUEST-IS-DONE");
    assert!(console.contains("FETCHED Ok(320000)"), "{console}");
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0)));
    drop(machine);
    assert!(!alive(pid));
}

#[test]
fn a_kernel_that_is_none_fails_in_qemus_own_words() {
    let mut guest = Guest::new("hello");
    let bad = guest.dir.path().join("bad,kernel");
    fs::write(&bad, b"not a kernel").unwrap();
    guest.spec.kernel = bad;
    let Err(error) = tcg().launch(&guest.spec) else {
        panic!("it launched")
    };
    let text = error.to_string();
    assert!(matches!(error, Error::VmmStart { .. }), "{text}");
    assert!(text.contains("linux kernel"), "{text}");
    assert!(guest.leftovers().is_empty());
    guest.spec.kernel = guest.dir.path().join("missing");
    let text = tcg().launch(&guest.spec).err().unwrap().to_string();
    assert!(text.contains("missing"), "{text}");
}

#[test]
fn qemu_is_confined_as_it_is_said() {
    let guest = Guest::new("beat");
    let machine = guest.launch();
    let confinement = machine.confinement();
    println!("{confinement}\n{:#?}", confinement.missing);
    let status = fs::read_to_string(format!("/proc/{}/status", machine.vmm().pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {status}"))
            .trim()
            .to_owned()
    };
    for layer in [
        Layer::NoNewPrivileges,
        Layer::NoCapabilities,
        Layer::SystemCalls,
    ] {
        assert!(confinement.has(layer), "{layer}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("Seccomp:"), "2");
    let line = fs::read(format!("/proc/{}/cmdline", machine.vmm().pid)).unwrap();
    let line = String::from_utf8(line).unwrap();
    let words: Vec<&str> = line.split('\0').collect();
    // No device that was not asked for, and no way to it but descriptors that its parent holds.
    assert!(
        words.contains(&"-nodefaults") && words.contains(&"-no-user-config"),
        "{words:?}"
    );
    let sockets = words.iter().filter(|word| word.starts_with("socket,"));
    assert!(
        sockets.clone().count() >= 2 && sockets.clone().all(|word| word.contains(",fd=")),
        "{words:?}"
    );
    let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", machine.vmm().pid))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(guest.dir.path()))
        .collect();
    assert!(open.is_empty(), "a disk-less machine holds {open:?}");
    let pid = machine.vmm().pid;
    let jailed = confinement.has(Layer::Mounts);
    if jailed {
        let mut devices: Vec<_> = fs::read_dir(format!("/proc/{pid}/root/dev"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        devices.sort();
        assert_eq!(
            devices,
            ["fd", "null", "stderr", "stdin", "stdout", "urandom"]
        );
        for outside in ["etc/shadow", "root", "home", "var", "tmp/.X11-unix"] {
            let path = format!("/proc/{pid}/root/{outside}");
            assert!(fs::symlink_metadata(&path).is_err(), "{path}");
        }
    } else {
        testkit::skip_part(
            "namespaces",
            format_args!("this host gives none: {:?}", confinement.missing),
        );
    }
    for (layer, name) in [
        (Layer::Users, "user"),
        (Layer::Processes, "pid"),
        (Layer::Network, "net"),
    ] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(theirs != ours, confinement.has(layer), "{layer}");
    }
    drop(machine);
    assert!(!alive(pid));

    // All of it, or a refusal that names what is missing.
    let mut guest = Guest::new("hello");
    guest.spec.confinement = ConfinementMode::Required;
    match (tcg().launch_qemu(&guest.spec), confinement.shortfall()) {
        (Ok(machine), None) => assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0))),
        (Err(Error::Confinement { missing }), Some(_)) => {
            println!("refused: {missing}");
            assert!(guest.leftovers().is_empty());
        }
        (outcome, shortfall) => panic!("{:?} with {shortfall:?}", outcome.err()),
    }
}

/// Launches a machine in a child program and kills that program.
#[test]
fn a_vmm_does_not_outlive_its_parent() {
    let exe = std::env::current_exe().unwrap();
    let mut parent = Command::new(exe)
        .args([
            "--ignored",
            "--exact",
            "parent_that_will_be_killed",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid: u32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.split("VMM-PID ").nth(1)?.trim().parse().ok())
        .expect("the child's VMM");
    assert!(alive(pid));
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while alive(pid) {
        assert!(Instant::now() < deadline, "QEMU {pid} outlived its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "runs inside a_vmm_does_not_outlive_its_parent"]
fn parent_that_will_be_killed() {
    let guest = Guest::new("beat");
    let machine: QemuMachine = std::thread::spawn({
        let spec = guest.spec.clone();
        move || tcg().launch_qemu(&spec).unwrap()
    })
    .join()
    .unwrap();
    // The thread that launched it is gone; the VMM must not be.
    assert_eq!(machine.wait(Duration::from_millis(300)).unwrap(), None);
    println!("VMM-PID {}", machine.vmm().pid);
    std::thread::sleep(Duration::from_secs(120));
}

#[test]
#[ignore = "a soak: 20 boots under full load, about 2 minutes"]
fn twenty_boots_under_load() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let outcome = std::panic::catch_unwind(|| {
            let guest = Guest::new("hello");
            let mut times: Vec<Duration> = (0..20)
                .map(|_| {
                    let start = Instant::now();
                    let machine = guest.launch();
                    assert_eq!(
                        machine.wait(MINUTE).unwrap(),
                        Some(Exit::Code(0)),
                        "{}",
                        guest.console()
                    );
                    start.elapsed()
                })
                .collect();
            times.sort();
            println!(
                "20 boots: {:?} .. {:?} .. {:?}",
                times[0], times[10], times[19]
            );
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
}
