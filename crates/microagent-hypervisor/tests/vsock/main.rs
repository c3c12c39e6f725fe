//! The vsock device against a real guest: every byte arrives once, in order, both ways, and nothing ever waits for ever.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// A failed step is the test's failure, also in its helpers; the soak prints its numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use guest::Guest;
use microagent_hypervisor::vsock;

// The fixture's ports.
const ECHO: u32 = 1001;
const SINK: u32 = 1002;
const SOURCE: u32 = 1003;
const SLOW_SINK: u32 = 1004;
const CLIENT: u32 = 1005;
const HALF_CLOSER: u32 = 1006;
const LAST: u32 = 1007;
const DEAF: u32 = 1008;
const WRITER: u32 = 1009;
const POWER_OFF: u32 = 1010;
const NOBODY: u32 = 4242;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(seed | 1) >> 7) as u8)
        .collect()
}

/// As in the fixture.
fn sum(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |s, b| {
        s.rotate_left(5) ^ u64::from(*b).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

fn read_u64s<const N: usize>(stream: &mut UnixStream) -> [u64; N] {
    [(); N].map(|()| {
        let mut b = [0; 8];
        stream.read_exact(&mut b).unwrap();
        u64::from_le_bytes(b)
    })
}

fn write_u64s(stream: &mut UnixStream, values: &[u64]) {
    for value in values {
        stream.write_all(&value.to_le_bytes()).unwrap();
    }
}

/// Writes all of `data` and ends the direction while the caller reads.
fn send_all<'a>(scope: &'a thread::Scope<'a, '_>, stream: &UnixStream, data: &'a [u8]) {
    let mut writer = stream.try_clone().unwrap();
    scope.spawn(move || {
        writer.write_all(data).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
}

fn echo(guest: &Guest, data: &[u8]) {
    let mut stream = guest.connect(ECHO);
    let mut back = Vec::with_capacity(data.len());
    thread::scope(|scope| {
        send_all(scope, &stream, data);
        stream.read_to_end(&mut back).unwrap();
    });
    assert!(
        back == data,
        "{} of {} bytes came back, or others",
        back.len(),
        data.len()
    );
}

fn sink(guest: &Guest, port: u32, data: &[u8]) {
    let mut stream = guest.connect(port);
    stream.write_all(data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_u64s(&mut stream), [data.len() as u64, sum(0, data)]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest closed");
}

fn source(guest: &Guest, len: usize, pause: Duration) {
    let mut stream = guest.connect(SOURCE);
    write_u64s(&mut stream, &[len as u64]);
    thread::sleep(pause);
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert!(
        data == pattern(0x5bd1_e995, len),
        "{} of {len} bytes came",
        data.len()
    );
}

fn last(guest: &Guest) -> u64 {
    let [value] = read_u64s(&mut guest.connect(LAST));
    value
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Echo on host port `port` for `guest`'s client; ends with the listener's file.
fn host_echo(guest: &Guest, port: u32) -> thread::JoinHandle<()> {
    let listener = vsock::listen(&guest.uds, port).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut data = [0; 4];
            if stream.read_exact(&mut data).is_ok() && &data == b"stop" {
                return;
            }
            thread::spawn(move || {
                let mut all = data.to_vec();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            });
        }
    })
}

fn stop_host_echo(guest: &Guest, port: u32, echo: thread::JoinHandle<()>) {
    let path = format!("{}_{port}", guest.uds.display());
    UnixStream::connect(&path)
        .unwrap()
        .write_all(b"stop")
        .unwrap();
    echo.join().unwrap();
    std::fs::remove_file(path).unwrap();
}

/// Has the guest open connections to the host: (echoed right, refused, neither).
fn guest_connects(guest: &Guest, port: u32, count: u64, at_once: u64, bytes: u64) -> [u64; 3] {
    let mut stream = guest.connect(CLIENT);
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    write_u64s(&mut stream, &[u64::from(port), count, at_once, bytes]);
    let counts = read_u64s(&mut stream);
    let mut notes = String::new();
    stream.read_to_string(&mut notes).unwrap();
    assert_eq!(notes, "");
    counts
}

#[test]
fn bytes_arrive_whole_both_ways() {
    let guest = Guest::boot();
    let data = pattern(99, 2 << 20);
    echo(&guest, b"");
    echo(&guest, b"x");
    for round in 0..4 {
        echo(&guest, &data[round..]);
    }
    sink(&guest, SINK, &data);
    source(&guest, 3 << 20, Duration::ZERO);
    // A host that does not read holds the guest back and loses nothing, even after the guest has closed.
    source(&guest, 3 << 20, Duration::from_millis(300));
    source(&guest, 300_000, Duration::from_millis(300));
    // A guest that reads slowly holds the host back.
    sink(&guest, SLOW_SINK, &data);
    eventually("connections end", || guest.device.stats().connections == 0);
}

#[test]
fn each_direction_ends_on_its_own() {
    let guest = Guest::boot();
    // The guest ends its direction; the host's stays open.
    let mut stream = guest.connect(HALF_CLOSER);
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert!(data == pattern(7, 1 << 20));
    let reply = pattern(8, 2 << 20);
    stream.write_all(&reply).unwrap();
    drop(stream);
    let expected = sum(sum(0, &reply), &(reply.len() as u64).to_le_bytes());
    eventually("the guest sees the host's last byte and end", || {
        last(&guest) == expected
    });

    // The guest reads no more: the host's writes break.
    let mut stream = guest.connect(DEAF);
    let mut word = [0; 4];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"deaf");
    let mut broken = None;
    eventually("the host learns that the guest is deaf", || {
        broken = stream.write(&[0; 1024]).err().map(|e| e.kind());
        broken.is_some()
    });
    assert_eq!(broken, Some(ErrorKind::BrokenPipe));

    // The host closes: the guest's writes break.
    let mut stream = guest.connect(WRITER);
    stream.read_exact(&mut [0; 10_000]).unwrap();
    drop(stream);
    eventually("the guest learns that the host is gone", || {
        last(&guest) == 32
    });
    eventually("connections end", || guest.device.stats().connections == 0);
}

#[test]
fn many_connections() {
    let guest = Guest::boot();
    // 300 at once, all open before the first byte.
    let mut streams: Vec<_> = (0..300).map(|_| guest.connect(ECHO)).collect();
    let data = pattern(5, 20_000);
    for stream in &mut streams {
        stream.write_all(&data).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in &mut streams {
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == data);
    }
    drop(streams);
    for _ in 0..250 {
        echo(&guest, b"again");
    }

    // The guest's turn: 300 connections, 60 at a time; then ports where nobody listens, both ways.
    let server = host_echo(&guest, 2000);
    assert_eq!(guest_connects(&guest, 2000, 300, 60, 5000), [300, 0, 0]);
    stop_host_echo(&guest, 2000, server);
    assert_eq!(guest_connects(&guest, 2000, 300, 60, 10), [0, 300, 0]);
    assert_eq!(
        guest.try_connect(NOBODY).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    eventually("connections end", || guest.device.stats().connections == 0);

    // Nobody talks: nobody wakes.
    let wakeups = || guest.device.stats().wakeups;
    eventually("what came last is over", || {
        let before = wakeups();
        thread::sleep(Duration::from_secs(2));
        wakeups() == before
    });
}

#[test]
fn the_vmm_may_stop_continue_and_die() {
    let mut guest = Guest::boot();
    let data = pattern(3, 4 << 20);
    let mut stream = guest.connect(ECHO);
    thread::scope(|scope| {
        send_all(scope, &stream, &data);
        let mut back = vec![0; data.len()];
        let (first, rest) = back.split_at_mut(500_000);
        stream.read_exact(first).unwrap();
        for _ in 0..3 {
            guest.qmp("stop");
            guest.qmp("cont");
        }
        stream.read_exact(rest).unwrap();
        assert!(back == data);
    });

    // Killed in mid-transfer: the host's streams end, the device waits for the next VMM.
    let mut stream = guest.connect(SOURCE);
    write_u64s(&mut stream, &[1 << 40]);
    stream.read_exact(&mut [0; 100_000]).unwrap();
    guest.kill();
    let mut rest = Vec::new();
    // An end or an error; not more bytes for ever.
    let _ = stream.read_to_end(&mut rest);
    eventually("connections end", || guest.device.stats().connections == 0);
    guest.reboot();
    echo(&guest, &data);
    drop(guest.connect(POWER_OFF));
}

#[test]
fn severed_at_once_and_for_good() {
    let guest = Guest::boot();
    let mut stream = guest.connect(SOURCE);
    write_u64s(&mut stream, &[1 << 40]);
    stream.read_exact(&mut [0; 100_000]).unwrap();
    guest.qmp("stop");
    guest.device.sever();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 4 << 20, "what was under way at most");
    assert!(guest.try_connect(ECHO).is_err());
    guest.qmp("cont");
    assert!(guest.try_connect(ECHO).is_err());
    assert!(guest.pid() > 0);
}

/// Thousands of transfers in one boot, with the numbers: run by hand.
#[test]
#[ignore = "soak"]
fn soak() {
    let rounds = std::env::var("ROUNDS").map_or(1000, |r| r.parse().unwrap());
    let guest = Guest::boot();
    let data = pattern(1, 4 << 20);
    let rate = |bytes: usize, since: Instant| bytes as f64 / since.elapsed().as_secs_f64() / 1e6;

    let began = Instant::now();
    for _ in 0..8 {
        sink(&guest, SINK, &data);
    }
    println!(
        "host to guest {:.0} MB/s (summed in the guest)",
        rate(8 * data.len(), began)
    );
    let mut stream = guest.connect(SOURCE);
    let began = Instant::now();
    write_u64s(&mut stream, &[64 << 20]);
    let mut all = vec![0; 64 << 20];
    stream.read_exact(&mut all).unwrap();
    println!("guest to host {:.0} MB/s", rate(all.len(), began));
    drop(all);

    let mut stream = guest.connect(ECHO);
    let mut times: Vec<_> = (0..5000)
        .map(|_| {
            let began = Instant::now();
            stream.write_all(&data[..64]).unwrap();
            stream.read_exact(&mut [0; 64]).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "64-byte echo p50 {:?}, p99 {:?}, max {:?}",
        times[2500], times[4950], times[4999]
    );
    drop(stream);

    let began = Instant::now();
    for round in 0..rounds {
        echo(&guest, &data);
        if round % 100 == 99 {
            println!(
                "{} echoes of 4 MiB, {:.0} MB/s each way, {}",
                round + 1,
                rate(data.len() * (round + 1), began),
                resident()
            );
        }
    }
    for round in 0..rounds / 20 {
        source(&guest, 1 << 20, Duration::from_millis(round as u64 % 50));
        sink(&guest, SINK, &data[..1 << 20]);
    }
    println!("{} sources and sinks", rounds / 20);
    let began = Instant::now();
    for _ in 0..rounds * 5 {
        echo(&guest, b"again");
    }
    println!(
        "{} connections, {:.2?} each",
        rounds * 5,
        began.elapsed() / (rounds * 5) as u32
    );
    let server = host_echo(&guest, 2000);
    let count = rounds as u64 * 5;
    assert_eq!(guest_connects(&guest, 2000, count, 50, 3000), [count, 0, 0]);
    println!("{count} connections from the guest, {}", resident());
    stop_host_echo(&guest, 2000, server);
    eventually("connections end", || guest.device.stats().connections == 0);
}

/// The VMM killed at different moments of a full-duplex transfer; the device must serve the next one every time.
#[test]
#[ignore = "soak"]
fn soak_kills() {
    let rounds: u64 = std::env::var("KILLS").map_or(20, |r| r.parse().unwrap());
    let mut guest = Guest::boot();
    let data = pattern(1, 64 << 20);
    for round in 0..rounds {
        let mut stream = guest.connect(ECHO);
        thread::scope(|scope| {
            let mut writer = stream.try_clone().unwrap();
            // Both end with the VMM, somewhere in the middle.
            let data = &data;
            scope.spawn(move || writer.write_all(data).map_err(|e| e.kind()));
            let until = Instant::now() + Duration::from_millis(round * 37 % 300);
            let mut buf = vec![0; 65536];
            while Instant::now() < until {
                stream.read_exact(&mut buf[..1000]).unwrap();
            }
            if round % 2 == 0 {
                guest.qmp("stop");
            }
            guest.kill();
            while stream.read(&mut buf).is_ok_and(|n| n > 0) {}
        });
        eventually("connections end", || guest.device.stats().connections == 0);
        guest.reboot();
    }
    println!("{rounds} kills, {}", resident());
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("Rss"))
        .map(|l| l.replace('\t', " "))
        .collect::<Vec<_>>()
        .join(", ")
}
