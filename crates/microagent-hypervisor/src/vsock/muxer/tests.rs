//! The tables and limits against real sockets and a guest made of packets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::*;
use crate::hybrid::listen_private;

const GUEST: u64 = 9;

struct Bench {
    muxer: Muxer,
    dir: TempDir,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let dir = TempDir::new().unwrap();
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let uds = dir.path().join("v");
        let listener = listen_private(&uds).unwrap();
        let muxer = Muxer::new(epoll, GUEST, uds, listener, limits, Arc::default()).unwrap();
        Self { muxer, dir }
    }

    /// Hands over every socket event that is pending.
    fn poll(&mut self) {
        let empty = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; 16];
        loop {
            let zero = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let n = epoll::wait(&self.muxer.epoll, &mut events[..], Some(&zero)).unwrap();
            if n == 0 {
                return;
            }
            for event in &events[..n] {
                self.muxer.on_socket(event.data.u64(), event.flags);
            }
        }
    }

    fn client(&self, says: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.write_all(says).unwrap();
        stream
    }

    fn packet(&mut self, op: u16, guest_port: u32, host_port: u32, data: &[u8]) {
        let header = Header {
            src_cid: GUEST,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: data.len() as u32,
            type_: TYPE_STREAM,
            op,
            buf_alloc: 65536,
            ..Header::default()
        };
        self.muxer.on_packet(&header, data);
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut buf = [0; 4096];
        let header = self.muxer.next_packet(&mut buf)?;
        Some((header, buf[..header.len as usize].to_vec()))
    }

    fn next_op(&mut self) -> Option<u16> {
        self.next().map(|(header, _)| header.op)
    }
}

fn is_closed(mut stream: UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0; 64]), Ok(0))
}

#[test]
fn a_line_in_pieces_opens_a_port_and_what_follows_it_is_the_guests() {
    let mut bench = Bench::new(Limits::default());
    let mut client = bench.client(b"CONN");
    for piece in [&b"ECT 10"[..], b"2", b"4\nhello"] {
        bench.poll();
        assert!(!bench.muxer.has_packet());
        client.write_all(piece).unwrap();
    }
    bench.poll();
    let (request, _) = bench.next().unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1024));
    bench.packet(op::RESPONSE, 1024, request.src_port, b"");
    let (data, bytes) = bench.next().unwrap();
    assert_eq!((data.op, &bytes[..]), (op::RW, &b"hello"[..]));
    bench.packet(op::RW, 1024, request.src_port, b"reply");
    let mut said = [0; 19];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"OK 1073741824\nreply");
}

#[test]
fn a_client_that_does_not_ask_properly_is_closed() {
    for says in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"CONNECT 99999999999\n",
        b"CONNECT 4294967296\n",
        b"CONNECT +1\n",
        b"CONNECT \n",
        b"connect 1\n",
        b"\n",
        &[0; 64],
    ] {
        let mut bench = Bench::new(Limits::default());
        let client = bench.client(says);
        bench.poll();
        assert!(!bench.muxer.has_packet());
        assert!(bench.muxer.handshakes.is_empty());
        // Nothing, not even an error, is said; unread bytes must not turn the end into a reset.
        assert!(is_closed(client), "{}", String::from_utf8_lossy(says));
    }
}

#[test]
fn handshakes_and_requests_are_bounded_in_number_and_time() {
    let mut bench = Bench::new(Limits {
        handshakes: 3,
        connections: 2,
        ..Limits::default()
    });
    assert_eq!(bench.muxer.next_deadline(), None, "idle: no timer");
    let clients: Vec<_> = (0..5).map(|_| bench.client(b"")).collect();
    bench.poll();
    assert_eq!(bench.muxer.handshakes.len(), 3);
    let late = bench.muxer.next_deadline().unwrap() + Duration::from_secs(1);
    bench.muxer.on_deadline(late);
    assert!(clients.into_iter().all(is_closed));
    assert_eq!(bench.muxer.next_deadline(), None);

    let mut clients: Vec<_> = (0..3).map(|_| bench.client(b"CONNECT 5\n")).collect();
    bench.poll();
    assert_eq!(bench.muxer.entries.len(), 2);
    assert!(is_closed(clients.remove(2)));
    assert_eq!(
        (bench.next_op(), bench.next_op()),
        (Some(op::REQUEST), Some(op::REQUEST))
    );
    let late = bench.muxer.next_deadline().unwrap() + Duration::from_secs(1);
    bench.muxer.on_deadline(late);
    assert!(clients.into_iter().all(is_closed));
    assert_eq!(
        (bench.next_op(), bench.next_op(), bench.next_op()),
        (Some(op::RST), Some(op::RST), None)
    );
    assert!(bench.muxer.entries.is_empty() && bench.muxer.by_key.is_empty());
    assert_eq!(bench.muxer.next_deadline(), None);
}

#[test]
fn packets_of_no_connection_are_reset_within_bounds_and_resets_never_answered() {
    let mut bench = Bench::new(Limits::default());
    for port in 0..10_000 {
        bench.packet((port % 12) as u16, port, 80, &[1; 10]);
    }
    let mut resets = 0;
    while let Some((header, _)) = bench.next() {
        assert_eq!(
            (header.op, header.dst_cid, header.src_port),
            (op::RST, GUEST, 80)
        );
        assert_ne!(header.dst_port % 12, u32::from(op::RST));
        resets += 1;
    }
    assert_eq!(resets, MAX_STRAY_RESETS);

    let strange = Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        type_: 2,
        op: op::REQUEST,
        ..Header::default()
    };
    bench.muxer.on_packet(&strange, &[]);
    assert_eq!(
        bench.next().map(|(h, _)| (h.op, h.type_)),
        Some((op::RST, 2))
    );
    let foreign = Header {
        src_cid: GUEST + 1,
        ..strange
    };
    bench.muxer.on_packet(&foreign, &[]);
    assert_eq!(bench.next(), None);
}

#[test]
fn a_guest_that_takes_no_packets_cannot_make_the_tables_grow() {
    let mut bench = Bench::new(Limits {
        connections: 8,
        ..Limits::default()
    });
    let listener = super::super::listen(&bench.dir.path().join("v"), 80).unwrap();
    for port in 0..3000 {
        bench.packet(op::REQUEST, port, 80, b"");
        let (stream, _) = listener.accept().unwrap();
        bench.packet(op::RW, port, 80, b"x");
        bench.packet(op::RST, port, 80, b"");
        bench.poll();
        drop(stream);
    }
    assert!(bench.muxer.entries.is_empty());
    assert!(bench.muxer.ready.is_empty());

    // At the limit: refused, and the established ones untouched.
    let mut streams = Vec::new();
    for port in 0..8 {
        bench.packet(op::REQUEST, port, 80, b"");
        streams.push(listener.accept().unwrap().0);
    }
    for port in 8..3000 {
        bench.packet(op::REQUEST, port, 80, b"");
    }
    assert_eq!(bench.muxer.entries.len(), 8);
    assert_eq!(bench.muxer.stray_resets.len(), MAX_STRAY_RESETS);
    bench.packet(op::RW, 3, 80, b"still here");
    let mut said = [0; 10];
    streams[3].read_exact(&mut said).unwrap();
    assert_eq!(&said, b"still here");
}

#[test]
fn an_ended_connection_the_guest_never_confirms_makes_room_for_a_new_one() {
    let mut bench = Bench::new(Limits {
        connections: 1,
        ..Limits::default()
    });
    let listener = super::super::listen(&bench.dir.path().join("v"), 80).unwrap();
    bench.packet(op::REQUEST, 1, 80, b"");
    // Not just closed: what another test starts may have it open for a moment.
    let (stream, _) = listener.accept().unwrap();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    bench.poll();
    assert_eq!(
        (bench.next_op(), bench.next_op()),
        (Some(op::RESPONSE), Some(op::SHUTDOWN))
    );
    assert_eq!(bench.muxer.entries.len(), 1);
    bench.packet(op::REQUEST, 2, 80, b"");
    assert_eq!(bench.next_op(), Some(op::RESPONSE));
    assert_eq!(bench.muxer.entries.len(), 1);
}

#[test]
fn severing_closes_everything_and_refuses_the_rest() {
    let mut bench = Bench::new(Limits::default());
    let listener = super::super::listen(&bench.dir.path().join("v"), 80).unwrap();
    bench.packet(op::REQUEST, 1, 80, b"");
    let (stream, _) = listener.accept().unwrap();
    let client = bench.client(b"CONNECT 5\n");
    let silent = bench.client(b"");
    bench.poll();
    // What a child has between fork and exec.
    let listening = bench.muxer.listener.as_ref().unwrap();
    let inherited = listening.try_clone().unwrap();
    bench.muxer.sever();
    assert!(is_closed(stream) && is_closed(client) && is_closed(silent));
    assert!(UnixStream::connect(bench.dir.path().join("v")).is_err());
    drop(inherited);
    while bench.next().is_some() {}
    bench.packet(op::REQUEST, 2, 80, b"");
    assert_eq!(bench.next_op(), Some(op::RST));
    assert!(bench.muxer.entries.is_empty());
}
