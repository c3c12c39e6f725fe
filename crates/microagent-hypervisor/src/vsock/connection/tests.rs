//! The state machine against a model guest and a model host program, in every order proptest can think of.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const CREDIT: u32 = 4096;
const KEY: Key = Key {
    host_port: 1 << 30,
    guest_port: 77,
};

/// What the host program and the connection share: a socket with little room.
#[derive(Default)]
struct Wire {
    to_guest: VecDeque<u8>,
    to_guest_ended: bool,
    to_host: Vec<u8>,
    to_host_ended: bool,
    /// Bytes the host program lets the socket take.
    room: usize,
    host_deaf: bool,
    receiving_finished: bool,
    closed: bool,
}

#[derive(Clone)]
struct Socket(Rc<RefCell<Wire>>);

struct End(Socket);

impl HostStream for End {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.0.borrow_mut();
        let n = wire.to_guest.len().min(buf.len());
        if n == 0 && !wire.to_guest_ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        for (slot, byte) in buf.iter_mut().zip(wire.to_guest.drain(..n)) {
            *slot = byte;
        }
        Ok(n)
    }

    fn send(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.0.borrow_mut();
        assert!(!wire.to_host_ended, "a byte after the end");
        if wire.host_deaf {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let n = wire.room.min(buf.len());
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        wire.room -= n;
        wire.to_host.extend(&buf[..n]);
        Ok(n)
    }

    fn finish_sending(&mut self) {
        self.0.0.borrow_mut().to_host_ended = true;
    }

    fn finish_receiving(&mut self) {
        self.0.0.borrow_mut().receiving_finished = true;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut wire = self.0.0.borrow_mut();
        wire.closed = true;
        wire.to_host_ended = true;
    }
}

/// A guest that keeps to the rules, and checks that we do.
struct Peer {
    connection: Connection<End>,
    wire: Socket,
    buf_alloc: u32,
    // Guest to host.
    sent: Vec<u8>,
    host_forwarded: u32,
    host_buf_alloc: u32,
    ended: bool,
    // Host to guest.
    received: Vec<u8>,
    consumed: usize,
    host_ended: u32,
    responded: bool,
    reset: bool,
    checked_to_host: usize,
    checked_received: usize,
}

impl Peer {
    fn new(buf_alloc: u32) -> Self {
        let wire = Socket(Rc::default());
        let request = Header {
            op: op::REQUEST,
            buf_alloc,
            ..Header::default()
        };
        Self {
            connection: Connection::from_guest(KEY, 3, End(wire.clone()), CREDIT, &request),
            wire,
            buf_alloc,
            sent: Vec::new(),
            host_forwarded: 0,
            host_buf_alloc: CREDIT,
            ended: false,
            received: Vec::new(),
            consumed: 0,
            host_ended: 0,
            responded: false,
            reset: false,
            checked_to_host: 0,
            checked_received: 0,
        }
    }

    fn packet(&mut self, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            op,
            flags,
            len: data.len() as u32,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.consumed as u32,
            ..Header::default()
        };
        self.connection.on_packet(&header, data);
        self.check();
    }

    fn guest_sends(&mut self, want: usize) {
        let in_flight = self.sent.len() as u32 - self.host_forwarded;
        let n = want.min((self.host_buf_alloc - in_flight) as usize);
        if n == 0 || self.ended || self.reset || !self.responded {
            return;
        }
        let at = self.sent.len();
        let data: Vec<u8> = (at..at + n).map(|i| (i * 7 / 3) as u8).collect();
        self.sent.extend(&data);
        self.packet(op::RW, 0, &data);
    }

    fn guest_ends(&mut self) {
        if !self.ended && !self.reset && self.responded {
            self.ended = true;
            self.packet(op::SHUTDOWN, SHUTDOWN_SEND, &[]);
        }
    }

    fn guest_consumes(&mut self, n: usize) {
        if self.consumed < self.received.len() && !self.reset {
            self.consumed = self.received.len().min(self.consumed + n);
            self.packet(op::CREDIT_UPDATE, 0, &[]);
        }
    }

    fn host_writes(&mut self, n: usize) {
        let mut wire = self.wire.0.borrow_mut();
        if wire.to_guest_ended {
            return;
        }
        let at = self.received.len() + wire.to_guest.len();
        wire.to_guest
            .extend((at..at + n).map(|i| (i * 5 / 2) as u8));
        drop(wire);
        self.connection.on_socket(true, false, false);
        self.check();
    }

    fn host_ends(&mut self) {
        self.wire.0.borrow_mut().to_guest_ended = true;
        self.connection.on_socket(true, false, false);
        self.check();
    }

    fn host_reads(&mut self, n: usize) {
        self.wire.0.borrow_mut().room += n;
        self.poll_room();
    }

    /// What epoll does for a socket watched for room.
    fn poll_room(&mut self) {
        if self.connection.wants_writable() && self.wire.0.borrow().room > 0 {
            self.connection.on_socket(false, true, false);
        }
        self.check();
    }

    /// Takes one packet if the connection says it has one, and only then.
    fn pump(&mut self, room: usize) -> bool {
        if !self.connection.has_packet() {
            return false;
        }
        let mut buf = vec![0; room];
        let Some(header) = self.connection.next_packet(&mut buf) else {
            self.check();
            return false;
        };
        assert_eq!(
            (header.src_port, header.dst_port),
            (KEY.host_port, KEY.guest_port)
        );
        self.host_forwarded = header.fwd_cnt;
        self.host_buf_alloc = header.buf_alloc;
        assert!(header.fwd_cnt as usize <= self.sent.len());
        match header.op {
            op::RESPONSE => self.responded = true,
            op::RW => {
                assert!(self.responded);
                assert_eq!(self.host_ended & SHUTDOWN_SEND, 0, "data after the end");
                self.received.extend(&buf[..header.len as usize]);
                let in_flight = self.received.len() - self.consumed;
                assert!(
                    in_flight <= self.buf_alloc as usize,
                    "beyond the guest's credit"
                );
            }
            op::SHUTDOWN => self.host_ended |= header.flags,
            op::RST => self.reset = true,
            op::CREDIT_REQUEST => self.packet(op::CREDIT_UPDATE, 0, &[]),
            op::CREDIT_UPDATE => {}
            other => panic!("operation {other}"),
        }
        self.check();
        true
    }

    fn check(&mut self) {
        assert!(self.connection.backlog_len() <= CREDIT as usize);
        let wire = self.wire.0.borrow();
        let (was, now) = (self.checked_to_host, wire.to_host.len());
        assert_eq!(wire.to_host[was..], self.sent[was..now], "order");
        self.checked_to_host = now;
        let new = self.received.iter().enumerate().skip(self.checked_received);
        assert!({ new }.all(|(i, b)| *b == (i * 5 / 2) as u8), "order");
        self.checked_received = self.received.len();
    }

    /// Both programs read to the end; whatever was held up must now arrive, in a bounded number of steps.
    fn settle(&mut self) {
        for _ in 0..2_000_000 {
            self.host_reads(1 << 20);
            self.guest_consumes(usize::MAX / 2);
            let moved = self.pump(512);
            if !moved && !self.connection.has_packet() {
                return;
            }
        }
        panic!("the connection never comes to rest");
    }
}

#[derive(Clone, Debug)]
enum Step {
    GuestSends(usize),
    GuestEnds,
    GuestConsumes(usize),
    HostWrites(usize),
    HostEnds,
    HostReads(usize),
    Pump(usize),
    Spurious,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..6000usize).prop_map(Step::GuestSends),
        1 => Just(Step::GuestEnds),
        8 => (1..3000usize).prop_map(Step::GuestConsumes),
        8 => (1..6000usize).prop_map(Step::HostWrites),
        1 => Just(Step::HostEnds),
        8 => (1..3000usize).prop_map(Step::HostReads),
        16 => (0..2000usize).prop_map(Step::Pump),
        2 => Just(Step::Spurious),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_byte_arrives_once_in_order_whatever_the_order_of_events(
        buf_alloc in prop_oneof![1..200u32, 1000..100_000u32],
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut peer = Peer::new(buf_alloc);
        for step in steps {
            match step {
                Step::GuestSends(n) => peer.guest_sends(n),
                Step::GuestEnds => peer.guest_ends(),
                Step::GuestConsumes(n) => peer.guest_consumes(n),
                Step::HostWrites(n) => peer.host_writes(n),
                Step::HostEnds => peer.host_ends(),
                Step::HostReads(n) => peer.host_reads(n),
                Step::Pump(room) => { peer.pump(room); }
                Step::Spurious => { peer.connection.on_socket(true, true, false); peer.check(); }
            }
            peer.poll_room();
        }
        peer.settle();
        prop_assert_eq!(&peer.wire.0.borrow().to_host, &peer.sent);
        prop_assert!(peer.wire.0.borrow().to_guest.is_empty());

        // Both ends end: both learn it, and the connection is over once the guest confirms.
        peer.guest_ends();
        peer.settle();
        prop_assert!(peer.wire.0.borrow().to_host_ended);
        peer.host_ends();
        peer.settle();
        prop_assert_eq!(peer.host_ended, SHUTDOWN_BOTH);
        peer.packet(op::RST, 0, &[]);
        prop_assert!(peer.connection.is_done());
        prop_assert!(peer.wire.0.borrow().closed);
    }

    #[test]
    fn a_hostile_guest_gets_nothing_but_a_reset(
        packets in proptest::collection::vec((0..10u16, 0..5u32, 0..6000usize, any::<u32>(), any::<u32>(), 0..4000usize), 0..100),
        from_host in any::<bool>(),
    ) {
        let wire = Socket(Rc::default());
        wire.0.borrow_mut().to_guest.extend([1; 10_000]);
        let end = End(wire.clone());
        let mut connection = if from_host {
            Connection::from_host(KEY, 3, end, CREDIT)
        } else {
            Connection::from_guest(KEY, 3, end, CREDIT, &Header::default())
        };
        let mut accepted = 0;
        for (op, flags, len, buf_alloc, fwd_cnt, room) in packets {
            let header = Header { op, flags, len: len as u32, buf_alloc, fwd_cnt, ..Header::default() };
            connection.on_packet(&header, &vec![2; len]);
            prop_assert!(connection.backlog_len() <= CREDIT as usize);
            wire.0.borrow_mut().room = room;
            connection.on_socket(true, true, false);
            let mut buf = vec![0; room];
            for turn in 0.. {
                prop_assert!(turn < 20_000, "packets without end");
                if !connection.has_packet() || connection.next_packet(&mut buf).is_none() { break; }
            }
            accepted += len;
            prop_assert!(wire.0.borrow().to_host.len() <= accepted + 20);
        }
    }
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut peer = Peer::new(1000);
    peer.pump(100);
    peer.packet(op::RW, 0, &[0; CREDIT as usize]);
    assert_eq!(peer.connection.backlog_len(), CREDIT as usize);
    let header = Header {
        op: op::RW,
        len: 1,
        ..Header::default()
    };
    peer.connection.on_packet(&header, &[0]);
    assert_eq!(peer.connection.backlog_len(), 0);
    assert_eq!(
        peer.connection.next_packet(&mut [0; 64]).map(|h| h.op),
        Some(op::RST)
    );
    assert!(peer.connection.is_done());
}

#[test]
fn what_a_closing_guest_sent_still_reaches_a_slow_host() {
    let mut peer = Peer::new(1000);
    peer.pump(100);
    peer.guest_sends(3000);
    peer.packet(op::SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert!(peer.pump(100));
    assert!(peer.reset, "the guest need not wait for the host");
    assert!(peer.connection.is_forgotten_by_guest() && !peer.connection.is_done());
    assert!(peer.wire.0.borrow().receiving_finished);
    for _ in 0..3 {
        assert!(!peer.wire.0.borrow().to_host_ended);
        peer.host_reads(1000);
    }
    assert!(peer.connection.is_done());
    assert_eq!(peer.wire.0.borrow().to_host, peer.sent);
}

#[test]
fn a_host_that_stops_reading_breaks_the_guests_pipe_only() {
    let mut peer = Peer::new(1000);
    peer.pump(100);
    peer.wire.0.borrow_mut().host_deaf = true;
    peer.guest_sends(10);
    assert!(peer.pump(100));
    assert_eq!(peer.host_ended, SHUTDOWN_RCV);
    peer.wire.0.borrow_mut().to_guest.extend([0, 2, 5]);
    peer.connection.on_socket(true, false, false);
    assert!(peer.pump(100));
    assert_eq!(peer.received, [0, 2, 5]);
}

#[test]
fn a_host_that_closes_is_told_of_after_its_last_byte() {
    let mut peer = Peer::new(4);
    peer.pump(100);
    peer.host_writes(10);
    peer.wire.0.borrow_mut().to_guest_ended = true;
    peer.connection.on_socket(true, true, true);
    peer.settle();
    assert_eq!(peer.received.len(), 10);
    assert_eq!(peer.host_ended, SHUTDOWN_BOTH);
    assert!(peer.wire.0.borrow().closed);
    assert!(peer.connection.awaits_only_guest_reset());
}

#[test]
fn a_host_initiated_connection_is_confirmed_by_its_line() {
    let wire = Socket(Rc::default());
    wire.0.borrow_mut().room = 100;
    let mut connection = Connection::from_host(KEY, 3, End(wire.clone()), CREDIT);
    let request = connection
        .next_packet(&mut [0; 64])
        .map(|h| (h.op, h.dst_cid, h.dst_port));
    assert_eq!(request, Some((op::REQUEST, 3, KEY.guest_port)));
    assert!(!connection.has_packet());
    let response = Header {
        op: op::RESPONSE,
        buf_alloc: 10,
        ..Header::default()
    };
    connection.on_packet(&response, &[]);
    assert_eq!(wire.0.borrow().to_host, b"OK 1073741824\n");

    let mut refused = Connection::from_host(KEY, 3, End(Socket(Rc::default())), CREDIT);
    refused.on_packet(
        &Header {
            op: op::RST,
            ..Header::default()
        },
        &[],
    );
    assert!(refused.is_done() && !refused.has_packet());
}
