//! What the VMM asks over vhost-user: memory, rings, features. Answers only what a vsock device needs.

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::hold::{RINGS, is_eventfd};
use super::{Device, FEATURES, RX, VIRTIO_RING_F_EVENT_IDX, notify};

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
        for index in 0..self.rings.len() {
            if self.rings[index].running && !self.rings[index].queue.is_valid(&self.mem) {
                self.stop(index);
            }
        }
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
        self.hold.notified_by(at, None);
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
        let mut copy = None;
        if let Some(fd) = &fd {
            if !is_eventfd(fd) {
                return Err(Error::InvalidOperation("a call is no event counter"));
            }
            // A full one is no reason to wait. The frontend can undo this: see `Hold`.
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| Error::ReqHandlerError(e.into()))?;
            copy = Some(fd.try_clone().map_err(Error::ReqHandlerError)?);
        }
        self.ring(u32::from(index))?.call = fd;
        self.hold.notified_by(usize::from(index), copy);
        // A new listener may have missed the last notification.
        let at = usize::from(index);
        if self.rings[at].running {
            notify(self.rings[at].call.as_ref());
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
