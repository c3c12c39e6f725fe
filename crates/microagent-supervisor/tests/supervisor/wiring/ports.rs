//! Published ports.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use microagent_protocol::{
    EndCause, PublishedPort,
    supervisor::{Command as Ask, ErrorKind, EventKind},
};

use testkit::Port;

use crate::{
    SOON,
    client::{Workspace, one_shot},
    gone, vmm,
};

use super::{echo, is_cut, launch_error, status, tcp_round_trip};

pub(super) fn published() {
    // Half-closes pass through where the vsock has them, and where it has none.
    for script in ["normal", vmm::WHOLE] {
        published_by(script);
    }
}

fn published_by(script: &str) {
    let server = echo();
    let mut workspace = Workspace::new(script);
    for host in ["127.0.0.1", "[::1]"] {
        let port = format!("{host}:0:{}", server.port()).parse().unwrap();
        workspace.spec.publish.push(port);
    }
    let nobody = Port::free();
    workspace
        .spec
        .publish
        .push(format!("0:{}", nobody.number()).parse().unwrap());
    let mut machine = workspace.boot(true);
    let EventKind::PortsPublished { ports } = machine
        .until(|kind| matches!(kind, EventKind::PortsPublished { .. }))
        .kind
    else {
        unreachable!();
    };
    assert!(ports.len() == 3 && ports.iter().all(|port| port.host_port != 0));
    assert_eq!(status(&machine).ports, ports);
    tcp_round_trip(ports[0].host_address(), 64 << 20);
    let both: Vec<_> = ports[..2]
        .iter()
        .flat_map(|port| [port.host_address(); 8])
        .map(|address| thread::spawn(move || tcp_round_trip(address, 1 << 20)))
        .collect();
    for one in both {
        one.join().unwrap();
    }
    // Where nothing listens in the guest, the client is not left to believe in a connection.
    let refused = TcpStream::connect(ports[2].host_address()).unwrap();
    refused.set_read_timeout(Some(SOON)).unwrap();
    let error = (&refused).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(machine.client().ask(Ask::Kill).is_ok());
    for port in &ports {
        assert!(TcpStream::connect(port.host_address()).is_err());
    }
    drop(machine.events);
}

pub(super) fn early() {
    let server = echo();
    let mut workspace = Workspace::new("late");
    let port = format!("0:{}", server.port()).parse().unwrap();
    workspace.spec.publish.push(port);
    let mut machine = workspace.boot(true);
    let port = status(&machine).ports[0];
    let mut stream = TcpStream::connect(port.host_address()).unwrap();
    stream.write_all(b"early").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let waits = stream.read(&mut [0]).unwrap_err().kind();
    assert_eq!(waits, io::ErrorKind::WouldBlock);
    std::fs::write(workspace.spec.directory.join("go"), "").unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!(back, "early");
    machine.ready();

    // One whose boot fails is told so.
    let mut workspace = Workspace::new("hang");
    workspace
        .spec
        .publish
        .push(format!("0:{}", server.port()).parse().unwrap());
    let mut machine = workspace.boot(true);
    let port = status(&machine).ports[0];
    let stream = TcpStream::connect(port.host_address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert!(machine.client().ask(Ask::Kill).is_ok());
    assert!(is_cut(&stream));
    assert_eq!(machine.end().1, EndCause::Killed);
}

pub(super) fn port_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut workspace = Workspace::new("normal");
    workspace.spec.publish = vec![
        "0:80".parse().unwrap(),
        format!("{port}:80").parse().unwrap(),
    ];
    let report = launch_error(&workspace);
    assert_eq!(report.kind, ErrorKind::Conflict);
    assert_eq!(
        report.message,
        format!("Port {port} of 127.0.0.1 is in use.")
    );
    assert!(report.remedy.unwrap().contains("0 for a free one"));
    assert!(!workspace.spec.directory.join("events.jsonl").exists());
    let (check, ok) = one_shot(Ask::Check(Box::new(workspace.spec.clone())));
    assert!(!ok && check.unwrap_err().kind == ErrorKind::Conflict);
    workspace.spec.publish = vec!["192.0.2.1:0:80".parse().unwrap()];
    let report = launch_error(&workspace);
    assert!(
        report.message.contains("no address of this host"),
        "{report}"
    );
}

pub(super) fn moved() {
    let server = echo();
    let mut workspace = Workspace::new("normal");
    for _ in 0..2 {
        let port = format!("127.0.0.1:0:{}", server.port()).parse().unwrap();
        workspace.spec.publish.push(port);
    }
    let mut machine = workspace.boot(true);
    machine.ready();
    let first = status(&machine).ports;
    let rebind = |hosts: [&str; 2]| {
        let ports = first.iter().zip(hosts);
        let ports = ports.map(|(port, host)| PublishedPort {
            host: host.parse().unwrap(),
            ..*port
        });
        machine.client().ask(Ask::Rebind {
            ports: ports.collect(),
        })
    };
    let reached = |host: &str, at: usize| {
        TcpStream::connect((host, first[at].host_port))
            .inspect(|stream| stream.set_read_timeout(Some(SOON)).unwrap())
    };
    let mut held = reached("127.0.0.1", 0).unwrap();
    let mut echoes = |byte: u8| {
        held.write_all(&[byte]).unwrap();
        let mut back = [0];
        held.read_exact(&mut back).unwrap();
        assert_eq!(back, [byte]);
    };
    echoes(1);

    // Everywhere covers where it is now, and back again; the other one stays where it is.
    for (host, elsewhere) in [
        ("0.0.0.0", true),
        ("127.0.0.1", false),
        ("::", true),
        ("127.0.0.2", false),
    ] {
        assert!(rebind([host, "127.0.0.1"]).is_ok(), "{host}");
        let ports = status(&machine).ports;
        assert_eq!(ports[0].host.to_string(), host);
        assert_eq!(ports[1], first[1]);
        let here = if host == "127.0.0.2" {
            host
        } else {
            "127.0.0.1"
        };
        tcp_round_trip(
            SocketAddr::new(here.parse().unwrap(), first[0].host_port),
            9,
        );
        assert_eq!(reached("127.0.0.3", 0).is_ok(), elsewhere, "{host}");
        tcp_round_trip(first[1].host_address(), 9);
        echoes(2);
    }

    // One that is in use: neither moves. So it is where somebody has a part of what is asked for.
    for (theirs, asked) in [("127.0.0.4", "127.0.0.4"), ("127.0.0.4", "0.0.0.0")] {
        let _theirs = TcpListener::bind((theirs, first[1].host_port)).unwrap();
        let report = rebind(["0.0.0.0", asked]).unwrap_err();
        assert_eq!(report.kind, ErrorKind::Conflict);
        assert!(report.message.contains("in use"), "{report}");
        assert!(reached("127.0.0.3", 0).is_err() && reached("127.0.0.3", 1).is_err());
        assert_eq!(status(&machine).ports[0].host.to_string(), "127.0.0.2");
        tcp_round_trip(
            SocketAddr::new("127.0.0.2".parse().unwrap(), first[0].host_port),
            9,
        );
        tcp_round_trip(first[1].host_address(), 9);
    }
    // What it shared with itself to move is not shared with others.
    let taken = TcpListener::bind(("127.0.0.2", first[0].host_port)).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

    let mut others = first.clone();
    others[1].guest_port ^= 1;
    for ports in [others, first[..1].to_vec(), Vec::new()] {
        let report = machine.client().ask(Ask::Rebind { ports }).unwrap_err();
        assert_eq!(report.kind, ErrorKind::Invalid, "{report}");
    }
    // The host's port need not be known, and what is so already is no event.
    let sequence = status(&machine).sequence;
    let mut same = status(&machine).ports;
    same[0].host_port = 0;
    assert!(machine.client().ask(Ask::Rebind { ports: same }).is_ok());
    assert_eq!(status(&machine).sequence, sequence);
    echoes(3);

    assert!(machine.client().ask(Ask::Quarantine).is_ok());
    let report = rebind(["127.0.0.1", "127.0.0.1"]).unwrap_err();
    assert_eq!(report.kind, ErrorKind::Conflict, "{report}");
    assert!(machine.client().ask(Ask::Kill).is_ok());
    machine.end();
    gone(&workspace, &machine);
}
