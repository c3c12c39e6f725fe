//! The virtio side: guest memory, the rings, and the vhost-user requests that set them up. Knows no host socket.
//!
//! Everything here runs on the device's one thread. Descriptor chains are walked with a bound on their length, read
//! once into private memory, and only then judged; guest memory must be a sealed memfd, so that a VMM gone bad cannot
//! shrink it under our feet (which would be a SIGBUS).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::SealFlags;
use rustix::mm::Advice;
use tracing::{debug, warn};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use super::TOKEN_FIRST_KICK;
use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};

/// Packets to the guest.
const RX: usize = 0;
/// Packets from the guest.
const TX: usize = 1;
/// Receive, transmit, event. The event ring is QEMU's; a frontend may still describe it to us.
const RINGS: usize = 3;
/// Largest ring accepted; QEMU's has 128 entries.
const MAX_RING: u16 = 1024;
/// Buffers in one chain; Linux uses 2, and up to 19 for zero-copy sends.
const MAX_BUFFERS: usize = 32;
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

/// The pieces of guest memory a chain names, in order.
struct Buffers {
    pieces: [(GuestAddress, usize); MAX_BUFFERS],
    count: usize,
    total: usize,
}

/// See the module's description.
pub(crate) struct Device {
    epoll: Arc<OwnedFd>,
    guest_cid: u64,
    pub(crate) muxer: Muxer,
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
    pub(crate) fn new(epoll: Arc<OwnedFd>, guest_cid: u64, muxer: Muxer) -> Result<Self> {
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
        let more = self.process_tx() | self.process_rx();
        if self.mapped_in > MAX_MAPPED_IN {
            self.let_go();
        }
        more
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
        loop {
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
        if ring.queue.needs_notification(&self.mem).unwrap_or(true)
            && let Some(call) = &ring.call
            && let Err(e) = rustix::io::write(call, &1u64.to_ne_bytes())
        {
            // Full means a notification is pending already.
            debug!("vsock: cannot notify the guest: {e}");
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

impl Buffers {
    /// The readable or writable buffers of `chain`; `None` if there are too many.
    fn collect(chain: DescriptorChain<&GuestMemoryMmap>, writable: bool) -> Option<Self> {
        let mut buffers = Self {
            pieces: [(GuestAddress(0), 0); MAX_BUFFERS],
            count: 0,
            total: 0,
        };
        // Bounded before filtering: a chain of the wrong kind is as long to walk as one of the right kind.
        for (walked, descriptor) in chain.enumerate() {
            if walked == MAX_BUFFERS {
                return None;
            }
            if descriptor.is_write_only() == writable {
                let len = descriptor.len() as usize;
                buffers.pieces[buffers.count] = (descriptor.addr(), len);
                buffers.count += 1;
                buffers.total = buffers.total.checked_add(len)?;
            }
        }
        Some(buffers)
    }

    /// Copies a packet out of the guest: the header, judged from our copy, and its payload into `data`.
    fn read(&self, mem: &GuestMemoryMmap, data: &mut [u8]) -> Option<(Header, usize)> {
        let mut header = [0; HEADER_LEN];
        self.copy(0, HEADER_LEN, |addr, range| {
            mem.read_slice(&mut header[range], addr).ok()
        })?;
        let header = Header::decode(&header);
        let len = usize::try_from(header.len).ok()?;
        let data = data.get_mut(..len)?;
        self.copy(HEADER_LEN, len, |addr, range| {
            mem.read_slice(&mut data[range], addr).ok()
        })?;
        Some((header, len))
    }

    /// Copies a packet into the guest; returns the bytes written, 0 if the buffers are not guest memory.
    fn write(&self, mem: &GuestMemoryMmap, header: &Header, payload: &[u8]) -> u32 {
        let raw = header.encode();
        let header_done = self.copy(0, HEADER_LEN, |addr, range| {
            mem.write_slice(&raw[range], addr).ok()
        });
        let payload_done = self.copy(HEADER_LEN, payload.len(), |addr, range| {
            mem.write_slice(&payload[range], addr).ok()
        });
        match (header_done, payload_done) {
            // At most HEADER_LEN + MAX_PAYLOAD.
            (Some(()), Some(())) => (HEADER_LEN + payload.len()) as u32,
            _ => 0,
        }
    }

    /// Calls `each` for every piece of the `len` bytes from `offset` on; `None` if the buffers are shorter.
    fn copy(
        &self,
        mut offset: usize,
        len: usize,
        mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Option<()>,
    ) -> Option<()> {
        let mut done = 0;
        for (addr, piece) in &self.pieces[..self.count] {
            if done == len {
                break;
            }
            if offset >= *piece {
                offset -= piece;
                continue;
            }
            let take = (piece - offset).min(len - done);
            let addr = addr.0.checked_add(offset as u64)?;
            each(GuestAddress(addr), done..done + take)?;
            done += take;
            offset = 0;
        }
        (done == len).then_some(())
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.rings.len() {
            self.rings[index].enabled = false;
            self.update(index)?;
        }
        self.muxer.drop_connections();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let known = FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if features & !known != 0 {
            return Err(Error::InvalidParam);
        }
        self.acked_features = features;
        for index in 0..self.rings.len() {
            let ring = &mut self.rings[index];
            ring.queue
                .set_event_idx(features & VIRTIO_RING_F_EVENT_IDX != 0);
            // Without protocol features there is no request to enable a ring: it is enabled from the start.
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                ring.enabled = true;
                self.update(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let (region, mapping) = Self::map(region, file)?;
            mapped.push(region);
            mappings.push(mapping);
        }
        self.mem = GuestMemoryMmap::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        self.mappings = mappings;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?
            .queue
            .try_set_size(size)
            .map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptor = GuestAddress(self.to_guest(descriptor)?);
        let available = GuestAddress(self.to_guest(available)?);
        let used = GuestAddress(self.to_guest(used)?);
        let mem = self.mem.clone();
        let queue = &mut self.ring(index)?.queue;
        queue
            .try_set_desc_table_address(descriptor)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used))
            .map_err(|_| Error::InvalidParam)?;
        // The request to set the base carries only the available index; the used index is the guest's own record.
        let used_index = queue
            .used_idx(&mem, std::sync::atomic::Ordering::Acquire)
            .map_err(|_| Error::InvalidParam)?;
        queue.set_next_used(used_index.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        let base = ring.queue.next_avail();
        ring.queue.set_ready(false);
        let at = index as usize;
        self.update(at)?;
        if at == RX {
            self.stopped_at = base;
        }
        self.rings[at].kick = None;
        self.rings[at].call = None;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let at = usize::from(index);
        self.ring(u32::from(index))?;
        self.stop(at);
        let mem = self.mem.clone();
        let ring = &mut self.rings[at];
        ring.kick = fd;
        ring.queue.set_ready(true);
        if ring.kick.is_some() && !ring.queue.is_valid(&mem) {
            ring.queue.set_ready(false);
            return Err(Error::InvalidParam);
        }
        self.update(at)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let Some(fd) = &fd {
            // A frontend must not be able to block us with a full one.
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| Error::ReqHandlerError(e.into()))?;
        }
        self.ring(u32::from(index))?.call = fd;
        // A new listener may have missed the last notification.
        let at = usize::from(index);
        if self.rings[at].running
            && let Some(call) = &self.rings[at].call
            && let Err(e) = rustix::io::write(call, &1u64.to_ne_bytes())
        {
            debug!("vsock: cannot notify the guest: {e}");
        }
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        self.update(index as usize)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // `struct virtio_vsock_config`: the guest's CID, 8 bytes.
        let config = self.guest_cid.to_le_bytes();
        let start = offset as usize;
        start
            .checked_add(size as usize)
            .and_then(|end| config.get(start..end))
            .map(<[u8]>::to_vec)
            .ok_or(Error::InvalidParam)
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Err(Error::InvalidOperation(
            "the vsock configuration is read-only",
        ))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("no inflight tracking"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("no inflight tracking"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("memory comes as one table"))
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidOperation("memory comes as one table"))
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("memory comes as one table"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no migration"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no migration"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("no migration"))
    }
}

#[cfg(test)]
mod tests;
