//! Memory that a disk can take from where it is.

use std::ops::Deref;

/// What the memory of direct writes, their offsets and their lengths are multiples of.
pub(super) const PAGE: usize = 4096;

/// Bytes that begin at a page, up to a capacity.
#[derive(Debug, Default)]
pub(crate) struct PageBuffer {
    /// Never longer than what was reserved, so it stays where it is.
    bytes: Vec<u8>,
    /// Where the first page begins.
    start: usize,
}

impl PageBuffer {
    /// Room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(capacity + PAGE);
        // `usize::MAX` where that cannot be told: then it begins anywhere.
        let start = bytes.as_ptr().align_offset(PAGE);
        let start = if start < PAGE { start } else { 0 };
        bytes.resize(start, 0);
        Self { bytes, start }
    }

    /// How many more bytes it takes before it would have to move.
    pub(crate) fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// Whether a disk could take these bytes to `offset` from where they are.
pub(super) fn is_direct(bytes: &[u8], offset: u64) -> bool {
    let address = bytes.as_ptr() as usize;
    address.is_multiple_of(PAGE)
        && bytes.len().is_multiple_of(PAGE)
        && offset.is_multiple_of(PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_and_stays_there() {
        let mut buffer = PageBuffer::with_capacity(3 * PAGE);
        for _ in 0..2 {
            assert!(buffer.is_empty() && buffer.room() >= 3 * PAGE);
            let at = buffer.as_ptr();
            for byte in 0..3 {
                buffer.extend(&[byte; PAGE]);
            }
            assert_eq!(at, buffer.as_ptr());
            assert!(is_direct(&buffer, PAGE as u64));
            assert!(
                buffer
                    .chunks(PAGE)
                    .zip(0..)
                    .all(|(page, byte)| page == [byte; PAGE])
            );
            assert!(!is_direct(&buffer[1..], 0) && !is_direct(&buffer[..5], 0));
            assert!(!is_direct(&buffer, 2048));
            buffer.clear();
        }
    }
}
