//! The virtio side: guest memory, the rings, and the vhost-user requests that set them up. Knows no host socket.
//!
//! Everything here runs on the device's one thread. Descriptor chains are walked with a bound on their length, read
//! once into private memory, and only then judged; guest memory must be a sealed memfd, so that a VMM gone bad cannot
//! shrink it under our feet (which would be a SIGBUS).

mod buffers;
mod requests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::SealFlags;
use rustix::mm::Advice;
use tracing::{debug, warn};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use super::TOKEN_FIRST_KICK;
use super::hold::{Hold, RINGS};
use super::muxer::Muxer;
use super::packet::HEADER_LEN;
use buffers::Buffers;

/// Packets to the guest.
const RX: usize = 0;
/// Packets from the guest.
const TX: usize = 1;
/// Largest ring accepted; QEMU's has 128 entries.
const MAX_RING: u16 = 1024;
/// Largest payload of one packet (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` of Linux drivers).
const MAX_PAYLOAD: usize = 64 * 1024;
/// Packets moved in each direction before other events get their turn.
const BURST: usize = 64;

/// Guest memory this process keeps mapped in before it lets go of it again: it is the VMM's and counted there, but a
/// page we touched counts as ours too.
const MAX_MAPPED_IN: usize = 4 * 1024 * 1024;
/// What reading a packet may map in at least: the kernel maps the 16 pages around a read fault.
const READ_FAULT: usize = 64 * 1024;
/// What writing one maps in at least: a page for the header, one for the payload.
const WRITE_FAULT: usize = 8 * 1024;

const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC;

#[derive(Debug)]
struct Ring {
    queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
    /// The kick eventfd is in the epoll set, which is exactly while the ring runs.
    running: bool,
    /// The guest broke the ring's rules; nothing is taken from it until it is set up anew.
    broken: bool,
}

/// A part of guest memory as the frontend sees it, to translate ring addresses.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    frontend: u64,
    guest: u64,
    len: u64,
}

/// See the module's description.
pub(crate) struct Device {
    epoll: Arc<OwnedFd>,
    guest_cid: u64,
    pub(crate) muxer: Muxer,
    hold: Arc<Hold>,
    mem: GuestMemoryMmap,
    mappings: Vec<Mapping>,
    rings: Vec<Ring>,
    acked_features: u64,
    /// Where the receive ring stood when it was last stopped: a driver that starts over is told from a resumed one.
    stopped_at: u16,
    scratch: Vec<u8>,
    /// Estimate of guest memory mapped in since it was last let go.
    mapped_in: usize,
}

impl Device {
    pub(crate) fn new(
        epoll: Arc<OwnedFd>,
        guest_cid: u64,
        muxer: Muxer,
        hold: Arc<Hold>,
    ) -> Result<Self> {
        let ring = || -> Result<Ring> {
            Ok(Ring {
                queue: Queue::new(MAX_RING).map_err(|_| Error::BackendInternalError)?,
                kick: None,
                call: None,
                enabled: false,
                running: false,
                broken: false,
            })
        };
        Ok(Self {
            epoll,
            guest_cid,
            muxer,
            hold,
            mem: GuestMemoryMmap::new(),
            mappings: Vec::new(),
            rings: (0..RINGS).map(|_| ring()).collect::<Result<_>>()?,
            acked_features: 0,
            stopped_at: 0,
            scratch: vec![0; MAX_PAYLOAD],
            mapped_in: 0,
        })
    }

    /// The frontend is gone: nothing of its memory or rings is kept.
    pub(crate) fn detach(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
            self.hold.notified_by(index, None);
            let ring = &mut self.rings[index];
            ring.queue.reset();
            ring.kick = None;
            ring.call = None;
            ring.enabled = false;
            ring.broken = false;
        }
        self.muxer.drop_connections();
        self.mappings.clear();
        self.mem = GuestMemoryMmap::new();
        self.acked_features = 0;
        self.stopped_at = 0;
    }

    /// Moves packets both ways until nothing moves or the guest had its turn; `true` asks to be called again soon.
    pub(crate) fn process(&mut self) -> bool {
        self.obey();
        let mut more = self.process_tx();
        // Its notification is where a VMM could have held us.
        self.obey();
        more |= self.process_rx();
        if self.mapped_in > MAX_MAPPED_IN {
            self.let_go();
        }
        more
    }

    /// Severs, if that was ordered and the command has not come through yet.
    pub(crate) fn obey(&mut self) {
        if self.hold.is_severed() && !self.muxer.is_severed() {
            self.muxer.sever();
        }
    }

    /// Unmaps the guest's pages from this process until they are touched again.
    fn let_go(&mut self) {
        self.mapped_in = 0;
        for region in self.mem.iter() {
            let (start, len) = (region.as_ptr().cast(), region.size());
            // SAFETY: the range is a shared file mapping we own, so its bytes stay in the file and come back at the
            // next access; nothing holds a reference into it, guest memory is only ever copied from and to.
            let done = unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) };
            if let Err(e) = done {
                debug!("vsock: cannot let go of guest memory: {e}");
            }
        }
    }

    fn process_tx(&mut self) -> bool {
        let mut more = false;
        let mut used = false;
        let mut scratch = std::mem::take(&mut self.scratch);
        for taken in 0.. {
            if taken == BURST {
                more = true;
                break;
            }
            let Some(chain) = self.pop(TX) else { break };
            let head = chain.head_index();
            match Buffers::collect(chain, false).and_then(|b| b.read(&self.mem, &mut scratch)) {
                Some((header, len)) => self.muxer.on_packet(&header, &scratch[..len]),
                None => debug!("vsock: the guest sent a malformed packet"),
            }
            self.push_used(TX, head, 0);
            self.mapped_in += READ_FAULT;
            used = true;
        }
        self.scratch = scratch;
        if used {
            self.signal(TX);
        }
        more
    }

    fn process_rx(&mut self) -> bool {
        let mut more = false;
        let mut used = false;
        let mut scratch = std::mem::take(&mut self.scratch);
        for given in 0.. {
            if !self.muxer.has_packet() {
                break;
            }
            if given == BURST {
                more = true;
                break;
            }
            let Some(chain) = self.pop(RX) else { break };
            let head = chain.head_index();
            let buffers = Buffers::collect(chain, true).filter(|b| b.total >= HEADER_LEN);
            let Some(buffers) = buffers else {
                debug!("vsock: the guest offered a malformed receive buffer");
                self.push_used(RX, head, 0);
                used = true;
                continue;
            };
            let room = (buffers.total - HEADER_LEN).min(MAX_PAYLOAD);
            let Some(header) = self.muxer.next_packet(&mut scratch[..room]) else {
                self.rings[RX].queue.go_to_previous_position();
                break;
            };
            // A data packet's `len` is what was read into the `room` bytes; every other packet's is zero.
            let payload = &scratch[..header.len as usize];
            let written = buffers.write(&self.mem, &header, payload);
            self.push_used(RX, head, written);
            self.mapped_in += WRITE_FAULT.max(payload.len());
            used = true;
        }
        self.scratch = scratch;
        if used {
            self.signal(RX);
        }
        more
    }

    /// The next chain of a running ring. When there is none, the guest has been asked to notify of the next.
    fn pop(&mut self, index: usize) -> Option<DescriptorChain<&GuestMemoryMmap>> {
        let ring = &mut self.rings[index];
        if !ring.running || ring.broken {
            return None;
        }
        // Twice at most: what was found missing may arrive while notification is being asked for, once.
        for _ in 0..2 {
            let found = match ring.queue.iter(&self.mem) {
                Ok(mut chains) => Ok(chains.next()),
                Err(e) => Err(e),
            };
            let again = match found {
                Ok(Some(chain)) => return Some(chain),
                Ok(None) => ring.queue.enable_notification(&self.mem),
                Err(e) => Err(e),
            };
            match again {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    warn!("vsock: the guest broke ring {index}: {e}");
                    ring.broken = true;
                    return None;
                }
            }
        }
        warn!("vsock: ring {index} announces what cannot be read");
        ring.broken = true;
        None
    }

    fn push_used(&mut self, index: usize, head: u16, len: u32) {
        let ring = &mut self.rings[index];
        if let Err(e) = ring.queue.add_used(&self.mem, head, len) {
            warn!("vsock: the guest broke ring {index}: {e}");
            ring.broken = true;
        }
    }

    fn signal(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        // An unreadable suppression field means: notify.
        if ring.queue.needs_notification(&self.mem).unwrap_or(true) {
            notify(ring.call.as_ref());
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Starts or stops ring `index` as its settings now say.
    fn update(&mut self, index: usize) -> Result<()> {
        let ring = &self.rings[index];
        let should_run = ring.enabled && ring.kick.is_some() && ring.queue.ready();
        if should_run && !ring.running && index < 2 {
            self.start(index)?;
        } else if !should_run && ring.running {
            self.stop(index);
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let token = TOKEN_FIRST_KICK + index as u64;
        let ring = &mut self.rings[index];
        if let Some(kick) = &ring.kick {
            // Edge-triggered and never read: each write to an eventfd is an edge, and a frontend that hands us
            // something else than an eventfd cannot make us spin or block on it.
            epoll::add(
                &self.epoll,
                kick,
                EventData::new_u64(token),
                EventFlags::IN | EventFlags::ET,
            )
            .map_err(|e| Error::ReqHandlerError(e.into()))?;
            ring.running = true;
            ring.broken = false;
            // Whatever was used before a pause may not have been announced; an idle interrupt does no harm.
            notify(ring.call.as_ref());
        }
        if index == RX && self.rings[RX].queue.next_avail() == 0 && self.stopped_at != 0 {
            // A new driver, not a resumed one: it knows none of the old connections.
            self.muxer.drop_connections();
        }
        Ok(())
    }

    fn stop(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        if ring.running {
            ring.running = false;
            if let Some(kick) = &ring.kick
                && let Err(e) = epoll::delete(&self.epoll, kick)
            {
                debug!("vsock: cannot stop watching ring {index}: {e}");
            }
        }
    }

    fn to_guest(&self, frontend: u64) -> Result<u64> {
        self.mappings
            .iter()
            .find(|m| frontend >= m.frontend && frontend - m.frontend < m.len)
            .and_then(|m| m.guest.checked_add(frontend - m.frontend))
            .ok_or(Error::InvalidParam)
    }

    fn map(region: &VhostUserMemoryRegion, file: File) -> Result<(GuestRegionMmap, Mapping)> {
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::InvalidOperation(
                "guest memory must be a memfd sealed against shrinking (memory-backend-memfd,seal=on)",
            ));
        }
        // Of huge pages there may be none left when one is touched, which is fatal, too.
        let kind = rustix::fs::fstatfs(&file).map_err(|e| Error::ReqHandlerError(e.into()))?;
        if kind.f_type != libc::TMPFS_MAGIC {
            return Err(Error::InvalidOperation(
                "guest memory must be of ordinary pages",
            ));
        }
        let mapping = Mapping {
            frontend: region.user_addr,
            guest: region.guest_phys_addr,
            len: region.memory_size,
        };
        // The mapping would be made all the same, and its tail would be fatal to touch.
        let size = file.metadata().map_err(Error::ReqHandlerError)?.len();
        let end = { region.mmap_offset }.checked_add(mapping.len);
        if end.is_none_or(|end| end > size) {
            return Err(Error::InvalidOperation(
                "a memory region runs past the end of its file",
            ));
        }
        let region = GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(mapping.guest))
            .ok_or(Error::InvalidParam)?;
        Ok((region, mapping))
    }
}

/// Interrupts the guest.
fn notify(call: Option<&File>) {
    if let Some(call) = call
        && let Err(e) = rustix::io::write(call, &1u64.to_ne_bytes())
    {
        // Full means a notification is pending already.
        debug!("vsock: cannot notify the guest: {e}");
    }
}

#[cfg(test)]
mod tests;
