//! The `user` network from inside a guest, and what is left of it afterwards.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use microagent::{Config, Microagent, SupervisorProgram};
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Sandbox, eventually, require};

use crate::sandbox;

const SOON: Duration = Duration::from_secs(30);

/// This host's address on its way to `target`, if it has one; nothing is sent.
pub(crate) fn outer_address(target: &str) -> Option<IpAddr> {
    let any: IpAddr = match target.contains(':') {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((target.parse::<IpAddr>().ok()?, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A web server of this host with one page; counts who came.
pub(crate) fn serve(address: IpAddr, page: &'static str) -> (u16, &'static AtomicUsize) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let guests: &'static AtomicUsize = Box::leak(Box::default());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            guests.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let length = page.len();
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{page}"
            );
        }
    });
    (port, guests)
}

/// A request from inside, and what of the answer is the page. A static busybox's `wget` does not
/// work without the C library's files, which this image does not have. The request's side stays
/// open until the answer is there: Debian 12's passt does not end what the guest half-closed.
pub(crate) fn fetch(address: &str, port: u16, limit: u32) -> String {
    let request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'; n=0; \
                   while [ ! -s page -a $n -lt $((limit * 20)) ]; do n=$((n + 1)); usleep 50000; done";
    format!(
        "cd /tmp; rm -f page; limit={limit}; \
         ({request}) | timeout $limit nc {address} {port} > page 2>/dev/null; tail -n 1 page"
    )
}

/// The passts that are children of this process.
fn passts(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((name, rest)) = stat.rsplit_once(") ") else {
                return false;
            };
            let mut fields = rest.split(' ');
            let living = fields.next().is_some_and(|state| state != "Z");
            living && name.contains("(passt") && fields.next() == Some(&parent.to_string())
        })
        .collect()
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

fn number(value: &serde_json::Value) -> u32 {
    value["pid"].as_u64().unwrap().try_into().unwrap()
}

/// Whether the host's first resolver answers at all, be it that there is no such name.
fn a_resolver_answers() -> bool {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let Some(server) = servers.next() else {
        return false;
    };
    let any = match server {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    // RFC 1035, 4.1: one question for the address of example.com.
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    let asked = UdpSocket::bind(any).and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(question, (server, 53))?;
        socket.recv(&mut [0; 512])
    });
    asked.is_ok()
}

#[test]
fn a_guest_reaches_the_outside_and_not_the_hosts_own_and_a_kill_leaves_nothing() {
    require("passt", "passt");
    let sandbox = sandbox();
    let name = format!("net-{}", std::process::id());
    let outer = outer_address("203.0.113.1").expect("a route out of this host");
    let (port, _) = serve(outer, "from outside\n");
    let (secret, guests) = serve(Ipv4Addr::LOCALHOST.into(), "secret\n");
    // What a workload finds with its first instructions.
    let first =
        "{ ip -o addr; ip route; cat /etc/resolv.conf; } > /first 2>&1; : > /done; exec sleep 600";
    sandbox
        .microagent(["create", &name, Sandbox::BUSYBOX, "--", "sh", "-c", first])
        .run()
        .success();
    sandbox.microagent(["start", &name]).run().success();
    let status = sandbox.microagent(["inspect", &name]).run().success();
    let status = status.parsed();
    let runtime = &status["network"]["runtime"];
    assert_eq!(runtime["provider"], "passt", "{status}");
    let supervisor = number(&status["processes"]["supervisor"]);
    let vmm = number(&status["processes"]["vmm"]);
    // What it is said to be held back by is what the kernel shows, and each gap has a reason.
    let confinement = &status["confinement"];
    let in_force = confinement["in_force"].as_array().unwrap();
    let apart = ["user", "mnt", "pid", "ipc", "uts", "net"]
        .map(|kind| {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            of(&vmm.to_string()) != of("self")
        })
        .map(usize::from);
    let said = [
        "users",
        "mounts",
        "processes",
        "ipc",
        "host_name",
        "network",
    ]
    .map(|layer| usize::from(in_force.iter().any(|have| have == layer)));
    assert_eq!(apart, said, "{confinement}");
    for gap in confinement["missing"].as_array().unwrap() {
        assert!(!gap["reason"].as_str().unwrap().is_empty(), "{gap}");
    }
    // Nobody spoke to the outside yet.
    assert!(passts(supervisor).is_empty());

    let inside = |script: &str| {
        let finished = sandbox
            .microagent(["exec", &name, "--", "sh", "-c", script])
            .run();
        (finished.code(), finished.out())
    };
    let (_, first) = inside("while [ ! -e /done ]; do usleep 10000; done; cat /first");
    for part in [
        "inet 10.0.2.15/24",
        "default via 10.0.2.2",
        "nameserver 10.0.2.3",
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    if let Some(ipv6) = runtime["interface"]["ipv6"].as_object() {
        let ipv6 = ipv6["address"].as_str().unwrap();
        let line = first.lines().find(|line| line.contains(ipv6));
        let line = line.unwrap_or_else(|| panic!("{ipv6}: {first}"));
        assert!(!line.contains("tentative"), "{line}");
    }
    assert_eq!(
        inside(&fetch(&outer.to_string(), port, 20)),
        (0, "from outside\n".to_owned())
    );
    let passt = passts(supervisor);
    assert_eq!(passt.len(), 1, "{passt:?}");
    let held = fs::read_to_string(format!("/proc/{}/status", passt[0])).unwrap();
    let held: Vec<_> = held
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    for wanted in [["CapEff:", "0000000000000000"], ["Seccomp:", "2"]] {
        assert!(
            held.iter().any(|line| line[..] == wanted),
            "{wanted:?}: {held:?}"
        );
    }
    for kind in ["user", "mnt", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&passt[0].to_string()), of("self"), "{kind}");
    }
    if let (Some(IpAddr::V6(outer)), false) = (
        outer_address("2001:db8::1"),
        runtime["interface"]["ipv6"].is_null(),
    ) {
        let (port, _) = serve(outer.into(), "by IPv6\n");
        assert_eq!(
            inside(&fetch(&outer.to_string(), port, 20)),
            (0, "by IPv6\n".to_owned())
        );
    } else {
        testkit::skip_part("IPv6", "this host has no way out by it");
    }
    if a_resolver_answers() {
        // Whatever the answer is, it came from the host's resolver.
        let (_, out) = inside("nslookup example.com 2>&1");
        assert!(
            out.contains("10.0.2.3") && !out.contains("could be reached"),
            "{out}"
        );
    } else {
        testkit::skip_part("names", "nobody answers this host's questions for them");
    }
    // The gateway stands for nobody, the guest's loopback is its own, and what the kernel may
    // send elsewhere is not let out.
    let script = format!(
        "ip route add 169.254.0.0/16 via 10.0.2.2
         for target in 10.0.2.2 127.0.0.1 169.254.169.254; do {}; done; echo tried",
        fetch("$target", secret, 2)
    );
    assert_eq!(inside(&script).1, "tried\n");
    assert_eq!(guests.load(Ordering::SeqCst), 0);

    let kill = Pid::from_raw(supervisor.cast_signed()).unwrap();
    kill_process(kill, Signal::KILL).unwrap();
    for pid in [vmm, passt[0]] {
        eventually(SOON, "the end of what it had", || {
            (!alive(pid)).then_some(())
        });
    }
    sandbox
        .microagent(["delete", "--force", &name])
        .run()
        .success();
}

#[test]
fn quarantine_cuts_a_stream_at_once() {
    require("passt", "passt");
    let sandbox = sandbox();
    let name = format!("cut-{}", std::process::id());
    let outer = outer_address("203.0.113.1").expect("a route out of this host");
    let listener = TcpListener::bind((outer, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let chatter = "while :; do echo word; usleep 5000; done | nc $0 $1";
    sandbox
        .microagent(["create", &name, Sandbox::BUSYBOX, "--", "sh", "-c", chatter])
        .args([&outer.to_string(), &port])
        .run()
        .success();
    sandbox.microagent(["start", &name]).run().success();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let supervisor = SupervisorProgram::At(env!("CARGO_BIN_EXE_microagent").into());
    let library = Microagent::new(Config::new(sandbox.state(), sandbox.runtime(), supervisor));
    let workspaces = library.workspaces();
    let workspace = workspaces.open(&name).unwrap();
    let (heard, words) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut last, mut buffer) = (None, [0; 4096]);
        // Its end, or a reset: either is one.
        while let Ok(1..) = stream.read(&mut buffer) {
            last = Some(Instant::now());
            // Only the first ones are waited for.
            let _ = heard.send(());
        }
        (last.expect("words before the cut"), Instant::now())
    });
    for _ in 0..10 {
        words.recv_timeout(SOON).expect("the guest's words");
    }
    drop(words);
    let start = Instant::now();
    workspace.quarantine().unwrap();
    let answered = start.elapsed();
    let (last, ended) = reader.join().unwrap();
    println!(
        "quarantined after {answered:?}: the last word after {:?}, the connection's end after {:?}",
        last.saturating_duration_since(start),
        ended.saturating_duration_since(start)
    );
    // A tenth of a second where the host is not busy with other tests.
    let cut = start + answered;
    assert!(last.saturating_duration_since(cut) < Duration::from_secs(1));
    assert!(ended.saturating_duration_since(cut) < Duration::from_secs(2));
    workspace.kill().unwrap();
    sandbox
        .microagent(["delete", "--force", &name])
        .run()
        .success();
}
