//! One descriptor chain's buffers: walked with a bound, copied once. Knows no ring and no connection.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::packet::{HEADER_LEN, Header};

/// Buffers in one chain; Linux uses 2, and up to 19 for zero-copy sends.
const MAX_BUFFERS: usize = 32;

/// The pieces of guest memory a chain names, in order.
pub(super) struct Buffers {
    pieces: [(GuestAddress, usize); MAX_BUFFERS],
    count: usize,
    pub(super) total: usize,
}

impl Buffers {
    /// The readable or writable buffers of `chain`; `None` if there are too many.
    pub(super) fn collect(
        chain: DescriptorChain<&GuestMemoryMmap>,
        writable: bool,
    ) -> Option<Self> {
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
    pub(super) fn read(&self, mem: &GuestMemoryMmap, data: &mut [u8]) -> Option<(Header, usize)> {
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
    pub(super) fn write(&self, mem: &GuestMemoryMmap, header: &Header, payload: &[u8]) -> u32 {
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
