//! What holds a Firecracker back: tried from inside, looked at from outside.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use microagent_hypervisor::{
    Error, Exit, Machine,
    firecracker::{FirecrackerBinary, JailerBinary, RateLimiter, TokenBucket, Tuning},
    network::Passt,
};
use microagent_protocol::{ConfinementLayer, ConfinementMode, NetworkMode};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    escape, fake,
    place::{Place, SOON, wait_for},
};

pub(crate) fn escapes() {
    let secret = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = secret.local_addr().unwrap().port();
    let name = std::os::unix::net::SocketAddr::from_abstract_name(port.to_string()).unwrap();
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&name).unwrap();
    let place = Place::new(&format!("escapes-{}-{port}", std::process::id()));
    let beside = place.dir.path().join(escape::BESIDE);
    let _beside = std::os::unix::net::UnixListener::bind(beside).unwrap();
    let machine = place.launch();
    let pid = machine.vmm().pid;
    let held = machine.confinement();
    println!("{held}\n{:#?}", held.missing);
    wait_for("the end of the attempts", || {
        place.console().contains(escape::TRIED)
    });
    let console = place.console();
    println!("{console}");
    for layer in [
        ConfinementLayer::Users,
        ConfinementLayer::Mounts,
        ConfinementLayer::Processes,
        ConfinementLayer::Ipc,
        ConfinementLayer::HostName,
        ConfinementLayer::Network,
    ] {
        let (name, missing) = (layer, &held.missing);
        if !held.has(layer) {
            testkit::skip_part(
                "namespaces",
                format_args!("this host gives none: {missing:?}"),
            );
            return;
        }
        assert!(held.has(name), "{held}");
    }
    assert!(!console.contains(escape::ESCAPED), "{console}");
    // Seen from outside: what it finds is its machine's and a few devices.
    let names = |path: &str| {
        let entries = fs::read_dir(format!("/proc/{pid}/root{path}")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let devices: Vec<String> = names("/dev")
        .into_iter()
        .filter(|name| name != "kvm")
        .collect();
    assert_eq!(
        devices,
        ["fd", "null", "stderr", "stdin", "stdout", "urandom"]
    );
    assert!(!names("/").iter().any(|name| name == "etc"
        && !names("/etc").is_empty()
        && names("/etc") != ["ld.so.cache"]));
    assert_eq!(names("/proc"), ["cpuinfo", "self"]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // In its own namespace it is the first process.
    let inside = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap();
    assert_eq!(
        inside.split_whitespace().collect::<Vec<_>>(),
        [pid.to_string(), "1".to_owned()]
    );
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for name in ["user", "mnt", "pid", "ipc", "uts", "net"] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(theirs, host(name));
    }
    drop(machine);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(place.leftovers(), [""; 0]);
}

/// The tap is in its namespaces, it may take it without a privilege, and is told of it.
pub(crate) fn networked() {
    let mut place = Place::new("networked");
    place.spec.network = NetworkMode::User;
    let passt = Passt::find(&std::env::var_os("PATH").unwrap()).unwrap();
    let launched = place
        .driver()
        .tuning(Tuning {
            network_limit: Some(RateLimiter {
                bandwidth: None,
                ops: Some(TokenBucket {
                    size: 1000,
                    refill_time: 100,
                }),
            }),
            ..Tuning::default()
        })
        .passt(Some(passt))
        .launch_firecracker(&place.spec);
    let machine = match launched {
        Ok(machine) => machine,
        Err(error @ Error::Unsupported(_)) => {
            testkit::skip_test(error);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let card = place.body("/network-interfaces/eth0");
    assert_eq!(card["host_dev_name"], "tap0");
    for direction in ["rx_rate_limiter", "tx_rate_limiter"] {
        assert_eq!(card[direction]["ops"]["size"], 1000, "{card}");
    }
    let seen = fs::read_to_string(format!("/proc/{}/net/dev", machine.vmm().pid)).unwrap();
    assert!(seen.contains("tap0:") && !seen.contains("eth0:"), "{seen}");
    wait_for("the tap's taking", || {
        place.console().contains(escape::TAP_TAKEN)
    });
    machine.sever().unwrap();
    drop(machine);
    assert_eq!(place.leftovers(), [""; 0]);
}

/// By the jailer: its machine works as any other, is another user's, and ends with this process.
pub(crate) fn jailed() {
    let mut place = Place::new("jailed");
    let firecracker = FirecrackerBinary::at(&place.program("firecracker")).unwrap();
    let nowhere = std::ffi::OsStr::new("/nonexistent");
    let off = JailerBinary::find(Some(Path::new("off")), &firecracker, nowhere).unwrap();
    assert_eq!(off, None);
    let program = place.program("jailer");
    let Some(jailer) = JailerBinary::find(None, &firecracker, nowhere).unwrap() else {
        testkit::skip_test("only root can use a jailer");
        return;
    };
    assert_eq!(jailer.path(), program);
    let passt = Passt::find(&std::env::var_os("PATH").unwrap()).unwrap();
    let driver = place.driver().jailer(Some(jailer)).passt(Some(passt));
    // Nobody else may read them.
    for path in [&place.spec.kernel, &place.spec.initramfs] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    place.spec.network = NetworkMode::User;
    let owner = fs::metadata(&place.spec.disks[1].path).unwrap().uid();
    let machine = driver.launch_firecracker(&place.spec).unwrap();
    let held = machine.confinement();
    println!("{held}\n{:#?}", held.missing);
    if !held.has(ConfinementLayer::OwnUser) {
        let missing = held
            .missing
            .iter()
            .find(|gap| gap.layer == ConfinementLayer::OwnUser);
        println!(
            "not run: this host's root may not: {}",
            missing.unwrap().reason
        );
        return;
    }
    for layer in [
        ConfinementLayer::NoNewPrivileges,
        ConfinementLayer::NoCapabilities,
        ConfinementLayer::Mounts,
        ConfinementLayer::Processes,
        ConfinementLayer::Ipc,
        ConfinementLayer::HostName,
        ConfinementLayer::Network,
    ] {
        assert!(held.has(layer), "{layer}: {held}");
    }
    let pid = machine.vmm().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
    };
    let user = (0x7000_0000 + std::process::id()).to_string();
    let four = [user.as_str(); 4].join("\t");
    assert_eq!(field("Uid:"), four);
    assert_eq!(field("Gid:"), four);
    // Its files are the machine's, and belong to whom they belonged.
    assert_eq!(
        place.body("/network-interfaces/eth0")["host_dev_name"],
        "tap0"
    );
    assert_eq!(
        fs::metadata(&place.spec.disks[1].path).unwrap().uid(),
        owner
    );
    assert_eq!(fs::metadata(machine.vsock()).unwrap().uid(), owner);
    machine.pause().unwrap();
    machine.resume().unwrap();
    wait_for("the guest's greeting", || {
        place.console().contains(fake::GREETING)
    });

    // What binds it to this process is the first process of its namespace.
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let anchor = numbers.filter(|other| *other != pid && namespace(*other) == namespace(pid));
    let [anchor] = anchor.collect::<Vec<u32>>()[..] else {
        panic!("it is not alone with its anchor");
    };
    assert_eq!(
        fs::read_dir(format!("/proc/{anchor}/fd")).unwrap().count(),
        0
    );
    kill_process(Pid::from_raw(anchor.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(machine.wait(SOON).unwrap(), Some(Exit::Signal(9)));
    drop(machine);
    assert!(!Path::new(&format!("/proc/{anchor}")).exists());
    assert_eq!(place.leftovers(), [""; 0]);

    // A jailer that cannot do its work is told of, and our own jail serves.
    place.spec.name = "jail-broken".to_owned();
    let machine = driver.launch_firecracker(&place.spec).unwrap();
    let held = machine.confinement();
    let missing = held
        .missing
        .iter()
        .find(|gap| gap.layer == ConfinementLayer::OwnUser);
    assert!(missing.unwrap().reason.contains("mknod"), "{missing:?}");
    assert!(held.has(ConfinementLayer::Mounts), "{held}");
}

pub(crate) fn required() {
    let mut place = Place::new("required");
    place.spec.confinement = ConfinementMode::Required;
    let error = place
        .driver()
        .launch_firecracker(&place.spec)
        .map(drop)
        .unwrap_err();
    let text = error.to_string();
    // The fake has no filter of its own, so that something is missing on every host.
    assert!(matches!(error, Error::Confinement { .. }), "{text}");
    assert!(text.contains("MICROAGENT_CONFINEMENT=auto"), "{text}");
    let landlock = text.contains("Landlock");
    assert!(landlock || text.contains("system call filter"), "{text}");
    assert_eq!(place.leftovers(), [""; 0]);

    // With one that comes after the answer, nothing is, where the host has the rest.
    place.spec.name = "filters".to_owned();
    if let Err(error) = place.driver().launch_firecracker(&place.spec) {
        let text = error.to_string();
        assert!(!text.contains("system call filter"), "{text}");
        testkit::skip_part("a filter that comes late", text);
    }
    // Nothing keeps it from writing to its disks then, which the fake would not take.
    place.spec.name = "required".to_owned();
    place.spec.disks.clear();
    place.spec.confinement = ConfinementMode::Off;
    let machine = place.launch();
    let held = machine.confinement();
    assert!(held.in_force.is_empty(), "{held}");
    assert!(
        held.missing
            .iter()
            .all(|missing| !missing.reason.is_empty())
    );
}
