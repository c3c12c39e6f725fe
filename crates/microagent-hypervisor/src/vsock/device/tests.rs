//! The rings and vhost-user requests against hand-written guest memory, well-formed and not.

use std::io::Read;
use std::os::fd::AsFd;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserMemoryRegion, VhostUserVringAddrFlags,
};

use super::super::Limits;
use super::super::packet::{Header, TYPE_STREAM, op};
use super::*;
use crate::hybrid::listen_private;

const MEMORY: u64 = 1 << 20;
/// Where the frontend has guest address 0.
const FRONTEND: u64 = 0x7f00_0000_0000;
const SIZE: u16 = 8;
const GUEST: u64 = 9;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Packet bytes live here.
const DATA: u64 = 0x8000;

fn at(ring: usize, table: u64) -> u64 {
    0x1000 + ring as u64 * 0x3000 + table * 0x1000
}

struct Bench {
    device: Device,
    memory: File,
    call: File,
    avail: [u16; 2],
    _dir: TempDir,
}

fn memfd(seals: SealFlags) -> File {
    let fd = memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, MEMORY).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd.into()
}

fn region() -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(0, MEMORY, FRONTEND, 0)
}

fn event() -> File {
    eventfd(0, EventfdFlags::NONBLOCK).unwrap().into()
}

impl Bench {
    fn bare() -> (Device, TempDir) {
        let dir = TempDir::new().unwrap();
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let uds = dir.path().join("v");
        let listener = listen_private(&uds).unwrap();
        let muxer = Muxer::new(
            epoll.clone(),
            GUEST,
            uds,
            listener,
            Limits::default(),
            Arc::default(),
        );
        let device = Device::new(epoll, GUEST, muxer.unwrap(), Arc::default());
        (device.unwrap(), dir)
    }

    fn new(features: u64) -> Self {
        let (mut device, _dir) = Self::bare();
        let memory = memfd(SealFlags::SHRINK);
        device.set_features(features).unwrap();
        device
            .set_mem_table(&[region()], vec![memory.try_clone().unwrap()], None)
            .unwrap();
        let call = event();
        for ring in 0..2u8 {
            let index = u32::from(ring);
            let table = |t| FRONTEND + at(ring.into(), t);
            device.set_vring_num(index, SIZE.into()).unwrap();
            device.set_vring_base(index, 0).unwrap();
            let flags = VhostUserVringAddrFlags::empty;
            device
                .set_vring_addr(index, flags(), table(0), table(2), table(1), 0)
                .unwrap();
            device
                .set_vring_call(ring, Some(call.try_clone().unwrap()))
                .unwrap();
            device.set_vring_kick(ring, Some(event())).unwrap();
        }
        Self {
            device,
            memory,
            call,
            avail: [0; 2],
            _dir,
        }
    }

    fn poke(&self, at: u64, bytes: &[u8]) {
        assert_eq!(
            rustix::io::pwrite(self.memory.as_fd(), bytes, at).unwrap(),
            bytes.len()
        );
    }

    fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        rustix::io::pread(self.memory.as_fd(), &mut bytes, at).unwrap();
        bytes
    }

    fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = Vec::new();
        raw.extend(addr.to_le_bytes());
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.poke(table + u64::from(index) * 16, &raw);
    }

    fn offer(&mut self, ring: usize, head: u16) {
        let slot = u64::from(self.avail[ring] % SIZE);
        self.poke(at(ring, 1) + 4 + slot * 2, &head.to_le_bytes());
        self.avail[ring] = self.avail[ring].wrapping_add(1);
        self.poke(at(ring, 1) + 2, &self.avail[ring].to_le_bytes());
    }

    fn used(&self, ring: usize) -> u16 {
        u16::from_le_bytes(self.peek(at(ring, 2) + 2))
    }

    fn offer_receive_buffer(&mut self) {
        self.descriptor(at(RX, 0), 0, DATA + 0x1000, 44, NEXT | WRITE, 1);
        self.descriptor(at(RX, 0), 1, DATA + 0x2000, 4096, WRITE, 0);
        self.offer(RX, 0);
    }
}

fn request() -> [u8; HEADER_LEN] {
    let header = Header {
        src_cid: GUEST,
        dst_cid: 2,
        src_port: 5,
        dst_port: 80,
        type_: TYPE_STREAM,
        op: op::REQUEST,
        ..Header::default()
    };
    header.encode()
}

#[test]
fn a_packet_is_read_however_it_is_cut_and_answered_once_there_is_a_buffer() {
    for features in [0, VIRTIO_RING_F_EVENT_IDX] {
        for cuts in [&[44][..], &[1, 40, 3], &[20, 24], &[44, 0]] {
            let mut bench = Bench::new(features);
            bench.poke(DATA, &request());
            let mut addr = DATA;
            for (i, len) in cuts.iter().enumerate() {
                let flags = if i + 1 < cuts.len() { NEXT } else { 0 };
                bench.descriptor(at(TX, 0), i as u16, addr, *len, flags, i as u16 + 1);
                addr += u64::from(*len);
            }
            bench.offer(TX, 0);
            assert!(!bench.device.process());
            assert_eq!((bench.used(TX), bench.used(RX)), (1, 0));
            bench.offer_receive_buffer();
            bench.device.process();
            assert_eq!(bench.used(RX), 1);
            assert_eq!(u32::from_le_bytes(bench.peek(at(RX, 2) + 8)), 44);
            let reset = Header::decode(&bench.peek(DATA + 0x1000));
            assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 80, 5));
            let mut count = [0; 8];
            bench.call.read_exact(&mut count).unwrap();
        }
    }
}

#[test]
fn malformed_chains_are_given_back_and_nothing_else() {
    type Cut<'a> = &'a [(u64, u32, u16, u16)];
    let cases: [(&str, Cut); 8] = [
        ("outside memory", &[(MEMORY - 10, 44, 0, 0)]),
        ("address overflow", &[(u64::MAX - 10, 44, 0, 0)]),
        ("too short", &[(DATA, 43, 0, 0)]),
        ("write-only", &[(DATA, 44, WRITE, 0)]),
        ("a loop of nothing", &[(DATA, 0, NEXT, 0)]),
        ("next outside the table", &[(DATA, 10, NEXT, 999)]),
        (
            "huge lengths",
            &[(DATA, u32::MAX, NEXT, 1), (DATA, u32::MAX, 0, 0)],
        ),
        ("an unaligned indirect table", &[(DATA, 17, INDIRECT, 0)]),
    ];
    for (what, descriptors) in cases {
        let mut bench = Bench::new(FEATURES);
        // A payload longer than any packet, where the header is read at all.
        let mut header = request();
        header[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        bench.poke(DATA, &header);
        for (i, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            bench.descriptor(at(TX, 0), i as u16, *addr, *len, *flags, *next);
        }
        bench.offer(TX, 0);
        bench.offer_receive_buffer();
        bench.device.process();
        assert_eq!((bench.used(TX), bench.used(RX)), (1, 0), "{what}");
    }
}

#[test]
fn an_endless_indirect_chain_is_walked_no_further_than_the_bound() {
    let mut bench = Bench::new(FEATURES);
    let entries = 4000;
    for i in 0..entries {
        bench.descriptor(0x10000, i, DATA, 1, NEXT, (i + 1) % entries);
    }
    bench.descriptor(at(TX, 0), 0, 0x10000, u32::from(entries) * 16, INDIRECT, 0);
    bench.offer(TX, 0);
    bench.device.process();
    assert_eq!(bench.used(TX), 1);
    assert!(!bench.device.muxer.has_packet());
}

#[test]
fn a_ring_whose_index_jumps_is_left_alone_until_set_up_anew() {
    let mut bench = Bench::new(FEATURES);
    bench.poke(at(TX, 1) + 2, &1000u16.to_le_bytes());
    assert!(!bench.device.process());
    bench.poke(at(TX, 1) + 2, &1u16.to_le_bytes());
    bench.device.process();
    assert_eq!(bench.used(TX), 0);
}

#[test]
fn a_stopped_ring_is_not_touched_and_goes_on_where_it_stood() {
    let mut bench = Bench::new(FEATURES);
    bench.poke(DATA, &request());
    bench.descriptor(at(TX, 0), 0, DATA, 44, 0, 0);
    bench.offer(TX, 0);
    bench.device.process();
    let base = bench.device.get_vring_base(1).unwrap().num;
    assert_eq!(base, 1);
    bench.offer(TX, 0);
    bench.device.process();
    assert_eq!(bench.used(TX), 1);
    bench.device.set_vring_base(1, base).unwrap();
    bench.device.set_vring_kick(1, Some(event())).unwrap();
    bench.device.process();
    assert_eq!(bench.used(TX), 2);
}

#[test]
fn memory_taken_away_from_under_a_ring_stops_it() {
    let mut bench = Bench::new(FEATURES);
    bench.poke(DATA, &request());
    bench.descriptor(at(TX, 0), 0, DATA, 44, 0, 0);
    bench.offer(TX, 0);
    let mut short = region();
    short.memory_size = at(TX, 1);
    let memory = bench.memory.try_clone().unwrap();
    bench
        .device
        .set_mem_table(&[short], vec![memory], None)
        .unwrap();
    assert!(!bench.device.process());
    assert_eq!(bench.used(TX), 0);
}

#[test]
fn a_frontend_cannot_hand_over_what_would_hurt() {
    let (mut device, _dir) = Bench::bare();
    let unsealed = device.set_mem_table(&[region()], vec![memfd(SealFlags::empty())], None);
    assert!(unsealed.is_err(), "memory that could shrink");
    let huge = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let huge = memfd_create("guest", huge).unwrap();
    ftruncate(&huge, 2 << 20).unwrap();
    fcntl_add_seals(&huge, SealFlags::SHRINK).unwrap();
    let unbacked = device.set_mem_table(&[region()], vec![huge.into()], None);
    assert!(unbacked.is_err(), "memory that there may be none of");
    let mut long = region();
    long.memory_size = MEMORY * 2;
    assert!(
        device
            .set_mem_table(&[long], vec![memfd(SealFlags::SHRINK)], None)
            .is_err()
    );
    device
        .set_mem_table(&[region()], vec![memfd(SealFlags::SHRINK)], None)
        .unwrap();

    for size in [0, 3, 2048, 70_000] {
        assert!(device.set_vring_num(0, size).is_err(), "ring size {size}");
    }
    let flags = VhostUserVringAddrFlags::empty;
    assert!(
        device
            .set_vring_addr(0, flags(), FRONTEND + MEMORY, FRONTEND, FRONTEND, 0)
            .is_err()
    );
    assert!(
        device
            .set_vring_addr(0, flags(), FRONTEND - 16, FRONTEND, FRONTEND, 0)
            .is_err()
    );
    assert!(device.set_vring_base(0, 65_536).is_err());
    assert!(
        device
            .set_vring_addr(7, flags(), FRONTEND, FRONTEND, FRONTEND, 0)
            .is_err()
    );
    assert!(device.set_vring_kick(7, None).is_err());
    let (_reader, writer) = std::io::pipe().unwrap();
    let pipe = File::from(OwnedFd::from(writer));
    assert!(device.set_vring_call(0, Some(pipe)).is_err(), "a pipe");
    assert!(device.get_vring_base(7).is_err());
    assert!(device.set_vring_enable(7, true).is_err());
    assert!(device.set_features(1 << 50).is_err());

    // A ring that runs past the end of memory.
    device.set_vring_num(0, 1024).unwrap();
    let end = FRONTEND + MEMORY - 0x1000;
    device
        .set_vring_addr(0, flags(), end, FRONTEND, FRONTEND, 0)
        .unwrap();
    assert!(device.set_vring_kick(0, Some(event())).is_err());

    let config = VhostUserConfigFlags::empty();
    assert_eq!(
        device.get_config(0, 8, config).unwrap(),
        GUEST.to_le_bytes()
    );
    assert!(device.get_config(4, 8, config).is_err());
    assert!(device.get_config(u32::MAX, u32::MAX, config).is_err());
}

#[test]
fn a_thread_that_is_held_by_a_full_counter_is_freed() {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};
    use std::time::Duration;

    let mut bench = Bench::new(FEATURES);
    let hold = bench.device.hold.clone();
    // As a frontend can do with what it has handed over.
    rustix::io::ioctl_fionbio(&bench.call, false).unwrap();
    bench.call.read_exact(&mut [0; 8]).unwrap();
    rustix::io::write(&bench.call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    bench.poke(DATA, &request());
    bench.descriptor(at(TX, 0), 0, DATA, 44, 0, 0);
    bench.offer(TX, 0);
    bench.offer_receive_buffer();
    let (done, told) = sync_channel(1);
    let processing = std::thread::spawn(move || {
        bench.device.process();
        done.send(()).unwrap();
        bench
    });
    let held = told.recv_timeout(Duration::from_millis(100));
    assert_eq!(held, Err(RecvTimeoutError::Timeout));
    hold.sever();
    hold.free();
    told.recv_timeout(Duration::from_secs(20)).unwrap();
    let bench = processing.join().unwrap();
    assert!(bench.device.muxer.is_severed(), "before anything moved");
    // Nothing waits on an empty one either.
    hold.free();
    hold.free();
}

proptest! {
    #[test]
    fn no_ring_content_panics_or_writes_outside_what_was_offered(
        tx in proptest::collection::vec((0..MEMORY + 4096, prop_oneof![0..100u32, any::<u32>()], 0..8u16, 0..10u16), SIZE as usize),
        rx in proptest::collection::vec((0x20000..MEMORY + 4096, prop_oneof![0..100u32, any::<u32>()], 0..8u16, 0..10u16), SIZE as usize),
        heads in proptest::collection::vec((0..10u16, 0..10u16), 0..8),
        packet in proptest::collection::vec(any::<u8>(), 64),
        op in 0..9u8,
        event_idx in any::<bool>(),
    ) {
        let mut bench = Bench::new(if event_idx { FEATURES } else { 0 });
        let mut raw = request();
        raw[30] = op;
        bench.poke(DATA, &raw);
        bench.poke(DATA + 44, &packet);
        for (i, (addr, len, flags, next)) in tx.iter().enumerate() {
            // Half of them point at something like a packet.
            let addr = if i % 2 == 0 { DATA } else { *addr };
            bench.descriptor(at(TX, 0), i as u16, addr, *len, *flags, *next);
        }
        for (i, (addr, len, flags, next)) in rx.iter().enumerate() {
            bench.descriptor(at(RX, 0), i as u16, *addr, *len, *flags, *next);
        }
        for (tx, rx) in heads {
            bench.offer(TX, tx);
            bench.offer(RX, rx);
            while bench.device.process() {}
        }
        prop_assert_eq!(bench.peek::<44>(DATA), raw);
        prop_assert_eq!(bench.peek::<64>(DATA + 44).to_vec(), packet);
    }
}
