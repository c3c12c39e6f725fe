//! What connects a machine to its host, seen from both sides: ports and servers.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    thread,
    time::Duration,
};

use serde_json::Value;
use testkit::{Port, Sandbox, eventually};

use crate::sandbox;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How long a boot may take on a loaded machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// Bytes that repeat nowhere near.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 11)) as u8).collect()
}

/// Sends all, ends its half, and compares what comes back.
fn round_trip(address: SocketAddr, count: u32) {
    let back = echoed(address, bytes(count)).unwrap();
    assert!(back == bytes(count), "{} bytes came back", back.len());
}

/// The same beside many others: busybox's `nc` resets some of many connections before it has sent a
/// byte, on any Linux. Such a client comes again.
fn round_trip_among_many(address: SocketAddr, count: u32) {
    for _ in 0..8 {
        match echoed(address, bytes(count)) {
            Ok(back) if back.is_empty() => {}
            Ok(back) => {
                assert!(back == bytes(count), "{} bytes came back", back.len());
                return;
            }
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::NotConnected
                ),
                "{error}"
            ),
        }
    }
    panic!("no connection was served to its end");
}

fn echoed(address: SocketAddr, sent: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    let read = stream.read_to_end(&mut back);
    let sent = sender.join().unwrap();
    read.and(sent).map(|()| back)
}

/// Serves an echo to everybody who connects.
fn echo<S>(incoming: impl Iterator<Item = io::Result<S>> + Send + 'static, end: fn(&S))
where
    S: Send + 'static,
    for<'s> &'s S: Read + Write,
{
    thread::spawn(move || {
        for stream in incoming.map_while(Result::ok) {
            thread::spawn(move || {
                // A guest that goes away in the middle is what some tests are about.
                let _ = io::copy(&mut &stream, &mut &stream);
                end(&stream);
            });
        }
    });
}

fn tcp_echo(address: &str) -> SocketAddr {
    let listener = Box::leak(Box::new(TcpListener::bind(address).unwrap()));
    echo(listener.incoming(), |stream| {
        let _ = stream.shutdown(Shutdown::Write);
    });
    listener.local_addr().unwrap()
}

fn workspace_events(sandbox: &Sandbox, name: &str) -> Vec<Value> {
    let path = sandbox
        .state()
        .join("workspaces")
        .join(name)
        .join("events.jsonl");
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The first event of this kind, as soon as it is there.
pub(crate) fn event(sandbox: &Sandbox, name: &str, kind: &str) -> Value {
    eventually(BOOT, kind, || {
        let events = workspace_events(sandbox, name);
        events.into_iter().find(|event| event["event"] == kind)
    })
}

pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{}", std::process::id())
}

#[test]
fn published_ports_lead_to_servers_on_the_guests_loopback() {
    let sandbox = sandbox();
    let name = unique("ports");
    // A server on each loopback, one on all addresses, and none.
    let script = "mkdir /www; echo page > /www/index.html
        httpd -p 127.0.0.1:8080 -h /www;
        httpd -p [::1]:8 -h /www; nc -ll -p 7 -e cat &
        echo up; cat > /dev/null; exit 3";
    let running = sandbox
        .microagent([
            "--json",
            "run",
            "-i",
            "--network",
            "isolated",
            "--name",
            &name,
        ])
        .args([
            "-p",
            "0:8080",
            "-p",
            "0:7/tcp",
            "-p",
            "[::1]:0:8",
            "-p",
            "0:9",
        ])
        .args([Sandbox::BUSYBOX, "sh", "-c", script])
        .start();
    let published = event(&sandbox, &name, "ports_published");
    let ports: Vec<SocketAddr> = published["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| {
            let host = port["host"].as_str().unwrap().parse().unwrap();
            let number = port["host_port"].as_u64().unwrap();
            SocketAddr::new(host, u16::try_from(number).unwrap())
        })
        .collect();
    assert!(ports[..2].iter().all(SocketAddr::is_ipv4) && ports[2].is_ipv6());

    // Bound before the machine has booted; who connects now waits for it.
    let mut early = TcpStream::connect(ports[0]).unwrap();
    early.set_read_timeout(Some(BOOT)).unwrap();
    event(&sandbox, &name, "workload_started");
    for address in [ports[0], ports[2]] {
        let page = eventually(SOON, "the page", || {
            let mut web = TcpStream::connect(address).ok()?;
            web.set_read_timeout(Some(SOON)).ok()?;
            web.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
            let mut page = String::new();
            web.read_to_string(&mut page).ok()?;
            page.ends_with("page\n").then_some(page)
        });
        assert!(
            page.starts_with("HTTP/1.") && page.contains("200 OK"),
            "{page}"
        );
    }
    // It was let in as soon as the guest was ready, which may have been before the server was.
    let outcome = early
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .and_then(|()| early.read_to_end(&mut Vec::new()));
    assert!(!matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock));

    eventually(SOON, "an echo", || {
        let mut stream = TcpStream::connect(ports[1]).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0]).ok()
    });
    round_trip(ports[1], 16 << 20);
    let many: Vec<_> = [ports[1]; 16]
        .into_iter()
        .map(|address| thread::spawn(move || round_trip_among_many(address, 100_000)))
        .collect();
    for one in many {
        one.join().unwrap();
    }
    // Nobody listens there.
    let mut refused = TcpStream::connect(ports[3]).unwrap();
    refused.set_read_timeout(Some(SOON)).unwrap();
    assert!(refused.read(&mut [0]).is_err());

    let held = TcpStream::connect(ports[1]).unwrap();
    held.set_read_timeout(Some(SOON)).unwrap();
    let finished = running.finish().exited(3);
    let result = finished.parsed();
    assert_eq!(result["ports"], published["ports"]);
    assert!(
        !matches!((&held).read(&mut [0]), Ok(1..)),
        "it ended with the machine"
    );
    assert!(
        ports
            .iter()
            .all(|address| TcpStream::connect(address).is_err())
    );
    sandbox.leftovers().none(&[&name]);
}

#[test]
fn what_cannot_be_wired_is_refused_before_anything_boots() {
    let sandbox = sandbox();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let gone = Port::free();
    let mediation = format!("2048={}", gone.address());
    let dir = tempfile::tempdir().unwrap();
    let not_ext4 = dir.path().join("zeros.img");
    fs::write(&not_ext4, [0; 4096]).unwrap();
    let not_ext4 = format!("{}:/data", not_ext4.display());
    let not_tar = dir.path().join("zeros.tar");
    fs::write(&not_tar, [7; 4096]).unwrap();
    let not_tar = format!("{}:/data", not_tar.display());
    for (option, value, words) in [
        (
            "-p",
            publish.as_str(),
            &["is in use", "0 for a free one"][..],
        ),
        ("--mediation", &mediation, &[&mediation, "optional"]),
        ("-v", &not_ext4, &["zeros.img", "no ext4"]),
        ("-v", &not_tar, &["zeros.tar", "data"]),
        ("-v", "/no/such/file.tar:/data", &["/no/such/file.tar"]),
    ] {
        let refused = sandbox
            .run([option, value, Sandbox::BUSYBOX, "true"])
            .run()
            .exited(125);
        for word in words {
            assert!(refused.err().contains(word), "{word}: {refused}");
        }
        assert!(refused.took < Duration::from_secs(20), "{refused}");
    }
    for (value, words) in [
        ("/tmp:/data", "microagent cp"),
        ("cache:/data", "no named volumes"),
    ] {
        let refused = sandbox
            .run(["-v", value, Sandbox::BUSYBOX, "true"])
            .run()
            .exited(2);
        assert!(refused.err().contains(words), "{refused}");
    }
    sandbox.leftovers().none(&[]);
}

/// Talks to a server of the host by each of the ways there are: `KIND PORT`.
const CLIENT: &str = r#"
use Socket;
my ($kind, $port) = @ARGV;
sub dial {
    my $s;
    if ($kind eq "tcp4") {
        socket($s, AF_INET, SOCK_STREAM, 0) && connect($s, pack_sockaddr_in($port, inet_aton("127.0.0.1")));
    } elsif ($kind eq "tcp6") {
        socket($s, AF_INET6, SOCK_STREAM, 0)
            && connect($s, Socket::pack_sockaddr_in6($port, Socket::inet_pton(AF_INET6, "::1")));
    } elsif ($kind eq "unix") {
        socket($s, AF_UNIX, SOCK_STREAM, 0)
            && connect($s, pack_sockaddr_un("/run/microagent/mediation/$port.sock"));
    } else {
        socket($s, 40, SOCK_STREAM, 0) && connect($s, pack("S S L L x4", 40, 0, $port, 2));
    }
    return $s;
}
"#;

#[test]
fn mediation_leads_to_servers_of_the_host_by_every_way() {
    let sandbox = sandbox();
    let name = unique("mediation");
    let four = tcp_echo("127.0.0.1:0");
    let six = tcp_echo("[::1]:0");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("server");
    let listener = Box::leak(Box::new(UnixListener::bind(&socket).unwrap()));
    echo(listener.incoming(), |stream| {
        let _ = stream.shutdown(Shutdown::Write);
    });
    let script = format!(
        r#"set -e
        cat > /tmp/echo.pl <<'EOF'
{CLIENT}
my $s = dial() or die "connect: $!";
if (!fork) {{ open(my $d, "<", $ARGV[2]); while (sysread($d, my $b, 65536)) {{ syswrite_all($s, $b) }} shutdown($s, 1); exit }}
sub syswrite_all {{ my ($s, $b) = @_; while (length $b) {{ my $n = syswrite($s, $b); exit 1 unless $n; substr($b, 0, $n, "") }} }}
while (sysread($s, my $b, 65536)) {{ print $b }}
EOF
        cat > /tmp/hold.pl <<'EOF'
{CLIENT}
my @held; my $ended = 0;
for (1..1500) {{ my $s = dial(); push @held, $s if $s }}
print "opened ", scalar(@held), "\n";
for my $s (@held[300..320]) {{ my $n = sysread($s, my $b, 1); $ended++ if !$n }}
print "ended $ended of 21\n";
EOF
        head -c 67108864 /dev/urandom > /tmp/large; head -c 100000 /tmp/large > /tmp/small
        echo; id -u
        perl /tmp/echo.pl tcp4 2048 /tmp/large | cmp - /tmp/large; echo large
        for way in "tcp6 2048" "unix 2048" "vsock 2048" "tcp4 2049" "unix 2049" "vsock 65535" "unix 65535"; do
            perl /tmp/echo.pl $way /tmp/small | cmp - /tmp/small; echo $way
        done
        perl /tmp/hold.pl vsock 2049
        perl /tmp/echo.pl tcp4 2048 /tmp/small | cmp - /tmp/small; echo still; cat > /dev/null"#
    );
    let running = sandbox
        .microagent(["run", "-i", "--name", &name, "-u", "65534", "-m", "768"])
        .args([
            "--network",
            "isolated",
            "--mediation",
            &format!("2048={four}"),
        ])
        .args(["--mediation", &format!("2049={six}")])
        .args(["--mediation", &format!("65535=unix:{}", socket.display())])
        .args([Sandbox::DEBIAN, "sh", "-c", &script])
        .start();
    event(&sandbox, &name, "workload_started");
    let vmm = event(&sandbox, &name, "vmm_started")["vmm"]["pid"].clone();
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("PPid:"));
    let supervisor = line.unwrap().trim_start_matches("PPid:").trim();
    let count =
        |what: &str| fs::read_dir(format!("/proc/{supervisor}/{what}")).map_or(0, Iterator::count);
    let mut most = (0, 0);
    eventually(BOOT + BOOT, "the end of it all", || {
        most = (most.0.max(count("task")), most.1.max(count("fd")));
        let output = running.output_so_far();
        String::from_utf8_lossy(&output)
            .contains("still")
            .then_some(())
    });
    // 128 connections of a route, each a thread and three descriptors, and what else there is.
    assert!(most.0 < 170 && most.1 < 700, "{most:?}");
    let finished = running.finish().success();
    let out = finished.out();
    for line in [
        "65534",
        "large",
        "tcp6 2048",
        "unix 2048",
        "vsock 2048",
        "tcp4 2049",
        "unix 2049",
        "vsock 65535",
        "unix 65535",
        "ended 21 of 21",
        "still",
    ] {
        assert!(out.lines().any(|seen| seen == line), "{line}: {finished}");
    }
    sandbox.leftovers().none(&[&name]);
}
