//! What connects a machine: ports, mediation routes, disks' locks, and samples, against a scripted guest whose
//! loopback is the host's.

mod ports;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Instant,
};

use microagent_protocol::{
    ExtraDisk, ReadinessSignal, State,
    supervisor::{Answer, Command as Ask, ErrorKind, ErrorReport, Status},
};

use crate::{
    SOON,
    client::{Machine, Workspace, one_shot},
    gone,
    vmm::{self, wait_for},
};

/// The tests of what connects a machine.
pub(crate) const TESTS: &[testkit::harness::Test] = &[
    ("published_ports_lead_into_the_guest", ports::published),
    (
        "a_connection_made_before_the_guest_is_ready_waits_for_it",
        ports::early,
    ),
    (
        "a_port_in_use_is_refused_before_anything_boots",
        ports::port_taken,
    ),
    ("published_ports_move_while_it_runs", ports::moved),
    ("mediation_leads_to_the_host_and_is_bounded", mediation),
    ("mediation_fails_closed_unless_it_is_optional", fail_closed),
    ("quarantine_and_the_end_cut_every_connection", cut),
    ("quarantine_waits_for_no_monitor", cut_off_unfrozen),
    (
        "a_greedy_guest_exhausts_neither_threads_nor_descriptors",
        greedy,
    ),
    (
        "a_disk_that_is_written_belongs_to_one_machine",
        disks_are_locked,
    ),
    ("wiring_that_cannot_be_is_refused_by_name", refused),
    ("samples_tell_what_a_machine_costs", samples),
];

/// A server that sends back what it gets, and its end after the client's.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// A server that takes connections and does nothing with them.
fn mute() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let _held: Vec<_> = listener.incoming().collect();
    });
    (address, thread)
}

fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 11)) as u8).collect()
}

/// Sends all, ends its half, and compares what comes back.
fn round_trip<S>(stream: S, count: u32, clone: fn(&S) -> io::Result<S>, end: fn(&S))
where
    S: Read + Write + Send + 'static,
{
    let mut writer = clone(&stream).unwrap();
    let sent = bytes(count);
    let expected = sent.clone();
    let sender = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        end(&writer);
    });
    let (mut stream, mut back) = (stream, Vec::new());
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == expected, "{} bytes came back", back.len());
}

fn tcp_round_trip(address: SocketAddr, count: u32) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    round_trip(stream, count, TcpStream::try_clone, |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
    });
}

fn unix_round_trip(path: &PathBuf, count: u32) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    round_trip(stream, count, UnixStream::try_clone, |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
    });
}

/// Whether a connection's other end closes or resets it soon.
fn is_cut(mut stream: impl Read) -> bool {
    !matches!(stream.read(&mut [0]), Ok(1..))
}

fn status(machine: &Machine) -> Status {
    match machine.client().ask(Ask::Inspect) {
        Ok(Answer::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

fn launch_error(workspace: &Workspace) -> ErrorReport {
    match one_shot(Ask::Launch(Box::new(workspace.spec.clone()))) {
        (Err(report), false) => report,
        other => panic!("{other:?}"),
    }
}

fn vsock_port(workspace: &Workspace, port: u16) -> PathBuf {
    let name = format!("vsock.sock_{port}");
    workspace.spec.runtime_dir.join("vmm").join(name)
}

fn mediation() {
    let server = echo();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("server");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut workspace = Workspace::new("normal");
    let mut by_address: microagent_protocol::MediationRoute =
        format!("2048={server}").parse().unwrap();
    by_address.max_connections = 4;
    let by_path = format!("65535=unix:{}", socket.display());
    workspace.spec.mediation = vec![by_address, by_path.parse().unwrap()];
    let mut machine = workspace.boot(true);
    machine.ready();
    let readiness = status(&machine).readiness;
    assert!(readiness[&ReadinessSignal::MediationReady].ready);

    let route = vsock_port(&workspace, 2048);
    unix_round_trip(&route, 64 << 20);
    let connect = || {
        let stream = UnixStream::connect(&route).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    let mut held: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    assert!(is_cut(connect()), "one too many");
    held.pop();
    wait_for(SOON, || {
        let mut stream = connect();
        stream.write_all(b"x").is_ok() && stream.read(&mut [0]).is_ok_and(|count| count == 1)
    });

    // The server's half may end first.
    let stream = UnixStream::connect(vsock_port(&workspace, 65535)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut said = String::new();
    loop {
        let (mut accepted, _) = listener.accept().unwrap();
        // Probes connect and say nothing.
        accepted.set_read_timeout(Some(SOON)).unwrap();
        if accepted.write_all(b"the server's last words").is_err() {
            continue;
        }
        accepted.shutdown(Shutdown::Write).unwrap();
        (&stream).read_to_string(&mut said).unwrap();
        (&stream).write_all(b"and the guest's").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        if accepted.read_to_string(&mut heard).is_ok() && !heard.is_empty() {
            assert_eq!(heard, "and the guest's");
            break;
        }
    }
    assert_eq!(said, "the server's last words");
}

fn fail_closed() {
    let gone = testkit::Port::free();
    let address = gone.address();
    let mut workspace = Workspace::new("normal");
    workspace.spec.mediation = vec![format!("2048={address}").parse().unwrap()];
    let report = launch_error(&workspace);
    assert!(
        report.kind == ErrorKind::Transient && report.retryable,
        "{report}"
    );
    assert!(report.message.contains(&address.to_string()), "{report}");
    assert!(report.remedy.unwrap().contains("optional"));
    assert!(!workspace.spec.directory.join("events.jsonl").exists());

    workspace.spec.mediation[0].required = false;
    let mut machine = workspace.boot(true);
    machine.ready();
    let readiness = &status(&machine).readiness[&ReadinessSignal::MediationReady];
    assert!(
        !readiness.ready && readiness.error.is_none(),
        "{readiness:?}"
    );
    let stream = UnixStream::connect(vsock_port(&workspace, 2048)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert!(is_cut(&stream));
    // It comes up later.
    let _server = gone.listen();
    assert!(status(&machine).readiness[&ReadinessSignal::MediationReady].ready);
}

fn cut() {
    let (server, _held) = mute();
    for quarantine in [true, false] {
        let mut workspace = Workspace::new("normal");
        workspace.spec.publish = vec![format!("0:{}", server.port()).parse().unwrap()];
        workspace.spec.mediation = vec![format!("2048={server}").parse().unwrap()];
        let mut machine = workspace.boot(true);
        machine.ready();
        let port = status(&machine).ports[0].host_address();
        let client = TcpStream::connect(port).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        let guest = UnixStream::connect(vsock_port(&workspace, 2048)).unwrap();
        guest.set_read_timeout(Some(SOON)).unwrap();
        let connections = |machine: &Machine| match machine.client().ask(Ask::Stats) {
            Ok(Answer::Stats(stats)) => stats.connections,
            other => panic!("{other:?}"),
        };
        wait_for(SOON, || connections(&machine) == 2);
        let ask = if quarantine {
            Ask::Quarantine
        } else {
            Ask::Kill
        };
        assert!(machine.client().ask(ask).is_ok());
        assert!(is_cut(&client) && is_cut(&guest));
        assert!(TcpStream::connect(port).is_err(), "the port is free");
        assert!(!vsock_port(&workspace, 2048).exists());
        if quarantine {
            let status = status(&machine);
            assert_eq!(status.state, State::Quarantined);
            assert!(!status.readiness[&ReadinessSignal::MediationReady].ready);
            wait_for(SOON, || connections(&machine) == 0);
            assert!(machine.client().ask(Ask::Kill).is_ok());
        }
        gone(&workspace, &machine);
    }
}

fn cut_off_unfrozen() {
    let (server, _held) = mute();
    let mut workspace = Workspace::new(vmm::STUBBORN);
    workspace.spec.publish = vec![format!("0:{}", server.port()).parse().unwrap()];
    let mut machine = workspace.boot(true);
    machine.ready();
    let port = status(&machine).ports[0].host_address();
    let client = TcpStream::connect(port).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut asking = machine.client();
    let asking = thread::spawn(move || asking.ask(Ask::Quarantine));
    assert!(is_cut(&client));
    // The monitor has not answered, and is not given up.
    assert!(!asking.is_finished());
    std::fs::write(workspace.spec.kernel.with_file_name(vmm::GIVE_UP), "").unwrap();
    let report = asking.join().unwrap().unwrap_err();
    assert!(report.message.contains("freeze"), "{report}");
    assert!(report.remedy.unwrap().contains("kill it"));
    assert_eq!(status(&machine).state, State::Running);
    assert!(machine.client().ask(Ask::Kill).is_ok());
    gone(&workspace, &machine);
}

fn greedy() {
    const LIMIT: usize = 64;
    let (server, _held) = mute();
    let mut workspace = Workspace::new("normal");
    workspace.spec.publish = vec![format!("0:{}", server.port()).parse().unwrap()];
    let mut route: microagent_protocol::MediationRoute = format!("2048={server}").parse().unwrap();
    route.max_connections = u32::try_from(LIMIT).unwrap();
    workspace.spec.mediation = vec![route];
    let mut machine = workspace.boot(true);
    machine.ready();
    let supervisor = machine.launched.supervisor.pid;
    let fds = || {
        std::fs::read_dir(format!("/proc/{supervisor}/fd"))
            .unwrap()
            .count()
    };
    let threads = || {
        std::fs::read_dir(format!("/proc/{supervisor}/task"))
            .unwrap()
            .count()
    };
    let fds_before = fds();
    let route = vsock_port(&workspace, 2048);
    let mut held = Vec::new();
    let mut most = (0, 0);
    for at in 0..3_000 {
        // A queue that is full is full: the device resets such a connection.
        if let Ok(stream) = UnixStream::connect(&route) {
            held.push(stream);
            held.truncate(200);
        }
        if at % 100 == 0 {
            most = (most.0.max(fds()), most.1.max(threads()));
        }
    }
    // Half-open forwards, too: more than a port may have.
    let port = status(&machine).ports[0].host_address();
    let clients: Vec<_> = (0..200)
        .filter_map(|_| TcpStream::connect(port).ok())
        .collect();
    for client in &clients {
        // Those over the limit are reset already.
        let _ = client.shutdown(Shutdown::Write);
    }
    wait_for(SOON, || threads() >= LIMIT + 128);
    most = (most.0.max(fds()), most.1.max(threads()));
    // Two ends each, a copy while a forward is opened, and a client or two that ask.
    assert!(
        most.0 <= fds_before + 2 * LIMIT + 3 * 128 + 16,
        "{most:?} after {fds_before}"
    );
    assert!(most.1 <= LIMIT + 128 + 20, "{most:?}");
    // It still does what it is there for, and lets go of everything.
    let begun = Instant::now();
    assert_eq!(status(&machine).state, State::Running);
    assert!(begun.elapsed() < SOON);
    drop((held, clients));
    wait_for(SOON, || threads() <= 128 + 20);
    assert!(machine.client().ask(Ask::Kill).is_ok());
    gone(&workspace, &machine);
}

fn disks_are_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.ext4");
    std::fs::write(&path, "").unwrap();
    let with_disk = |read_only| {
        let mut workspace = Workspace::new("normal");
        workspace.spec.disks.push(ExtraDisk {
            name: "data".parse().unwrap(),
            path: path.clone(),
            mountpoint: "/data".parse().unwrap(),
            read_only,
        });
        workspace
    };
    let first = with_disk(false);
    let machine = first.boot(true);
    for read_only in [true, false] {
        let report = launch_error(&with_disk(read_only));
        assert_eq!(report.kind, ErrorKind::Conflict);
        for word in [
            path.display().to_string(),
            first.spec.directory.display().to_string(),
            machine.launched.supervisor.pid.to_string(),
        ] {
            assert!(report.message.contains(&word), "{word}: {report}");
        }
        assert!(report.remedy.is_some());
    }
    assert!(machine.client().ask(Ask::Kill).is_ok());
    gone(&first, &machine);
    let readers = [with_disk(true), with_disk(true)];
    let machines: Vec<_> = readers.iter().map(|reader| reader.boot(true)).collect();
    assert_eq!(launch_error(&with_disk(false)).kind, ErrorKind::Conflict);
    for machine in &machines {
        assert!(machine.client().ask(Ask::Kill).is_ok());
    }
}

fn refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("d.ext4");
    std::fs::write(&image, "").unwrap();
    let disk = |name: &str, mountpoint: &str| ExtraDisk {
        name: name.parse().unwrap(),
        path: image.clone(),
        mountpoint: mountpoint.parse().unwrap(),
        read_only: true,
    };
    let spec = || Workspace::new("normal");
    let mut cases = Vec::new();
    for (disks, word) in [
        (vec![disk("a", "/a"), disk("a", "/b")], "twice"),
        (vec![disk("a", "/a"), disk("b", "/a")], "twice"),
        (vec![disk("a", "/proc/x")], "hide"),
        (vec![disk("a", "/dev")], "hide"),
        (
            (0..17)
                .map(|at| disk(&format!("d{at}"), &format!("/d{at}")))
                .collect(),
            "16",
        ),
    ] {
        let mut workspace = spec();
        workspace.spec.disks = disks;
        cases.push((workspace, word));
    }
    let mut directory = spec();
    directory.spec.disks = vec![ExtraDisk {
        path: dir.path().to_owned(),
        ..disk("a", "/a")
    }];
    cases.push((directory, "regular file"));
    let mut routes = spec();
    routes.spec.mediation = vec!["2048=a:1".parse().unwrap(), "2048=b:1".parse().unwrap()];
    cases.push((routes, "twice"));
    let mut ports = spec();
    ports.spec.publish = vec!["0:80".parse().unwrap(); 65];
    cases.push((ports, "64"));
    for (workspace, word) in cases {
        let report = launch_error(&workspace);
        assert!(
            report.kind == ErrorKind::Invalid && report.message.contains(word),
            "{word}: {report}"
        );
    }
    let mut missing = spec();
    missing.spec.disks = vec![ExtraDisk {
        path: "/no/such/disk.ext4".into(),
        ..disk("a", "/a")
    }];
    let report = launch_error(&missing);
    assert!(report.kind == ErrorKind::NotFound && report.message.contains("/no/such/disk.ext4"));
}

fn samples() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(true);
    machine.ready();
    let vmm = status(&machine).vmm.unwrap().pid;
    let mut client = machine.client();
    for _ in 0..2 {
        let Ok(Answer::Stats(stats)) = client.ask(Ask::Stats) else {
            panic!("no sample");
        };
        assert_eq!(stats.pid, vmm);
        assert!(stats.memory_bytes > 100_000 && stats.supervisor_memory_bytes > 100_000);
        assert!(stats.cpu_percent.is_some_and(|percent| percent < 400.0));
        assert_eq!((stats.sessions, stats.connections), (0, 0));
    }
    assert!(machine.client().ask(Ask::Kill).is_ok());
    machine.end();
}
