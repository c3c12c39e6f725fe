//! File content goes straight to where it stays: appended to the disk's data area as it is decompressed.
//!
//! Knows blocks and extents, nothing of names. Zero runs become holes.

use std::io;

use microagent_files::tar::TarFault;

use super::buffer::PageBuffer;
use super::error::LayerFault;
use super::limits::Limits;

/// Bytes of a file system block: half a page, as most files of images are small (`docs/design/disks.md`).
pub(crate) const BLOCK: usize = 2048;
/// Shorter zero runs are written out: a hole costs an extent.
const MIN_HOLE_BLOCKS: u64 = (32 << 10) / BLOCK as u64;
/// Blocks gathered before one write.
pub(super) const BUFFER_BLOCKS: usize = (1 << 20) / BLOCK;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Where the disk's blocks go.
pub(crate) trait BlockFile {
    /// Writes whole blocks at a block number; never called twice for one block except for block 0 and its followers.
    fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()>;

    /// The same for a whole buffer, which comes back empty, perhaps as another one.
    fn write_buffer(&mut self, block: u32, buffer: &mut PageBuffer) -> io::Result<()> {
        self.write_blocks(block, buffer)?;
        buffer.clear();
        Ok(())
    }
}

/// A run of blocks of a file: `length` blocks from logical block `logical` lie at `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u32,
    pub(crate) start: u32,
    pub(crate) length: u32,
}

/// A file's extents; the common file is one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extents {
    None,
    One(Extent),
    Many(Box<[Extent]>),
}

impl Extents {
    pub(crate) fn of(extents: Vec<Extent>) -> Self {
        match extents.as_slice() {
            [] => Extents::None,
            [one] => Extents::One(*one),
            _ => Extents::Many(extents.into_boxed_slice()),
        }
    }

    /// The same content where its first block is `base` blocks further on; `None` where no block can be.
    pub(crate) fn moved(self, base: u32) -> Option<Self> {
        let moved = |extent: Extent| {
            let start = extent.start.checked_add(base)?;
            start.checked_add(extent.length)?;
            Some(Extent { start, ..extent })
        };
        Some(match self {
            Extents::None => Extents::None,
            Extents::One(extent) => Extents::One(moved(extent)?),
            Extents::Many(extents) => {
                Extents::Many(extents.iter().copied().map(moved).collect::<Option<_>>()?)
            }
        })
    }

    pub(crate) fn as_slice(&self) -> &[Extent] {
        match self {
            Extents::None => &[],
            Extents::One(extent) => std::slice::from_ref(extent),
            Extents::Many(extents) => extents,
        }
    }
}

/// Appends blocks to the disk, in order, buffered.
pub(crate) struct Appender<'o> {
    out: &'o mut dyn BlockFile,
    /// Block number of the buffer's first byte.
    base: u32,
    buffer: PageBuffer,
    max_blocks: u32,
}

impl<'o> Appender<'o> {
    pub(crate) fn new(out: &'o mut dyn BlockFile, first_block: u32, max_disk_bytes: u64) -> Self {
        let max_blocks = u32::try_from(max_disk_bytes / BLOCK as u64).unwrap_or(u32::MAX);
        Appender {
            out,
            base: first_block,
            buffer: PageBuffer::with_capacity(BUFFER_BLOCKS * BLOCK),
            max_blocks,
        }
    }

    /// The number the next block gets.
    pub(crate) fn next_block(&self) -> u32 {
        self.base + (self.buffer.len() / BLOCK) as u32
    }

    /// Appends whole blocks; `false` where the disk's size limit would be passed.
    pub(crate) fn append(&mut self, mut blocks: &[u8]) -> io::Result<bool> {
        let count = blocks.len() / BLOCK;
        if u64::from(self.next_block()) + count as u64 > u64::from(self.max_blocks) {
            return Ok(false);
        }
        while !blocks.is_empty() {
            let room = BUFFER_BLOCKS * BLOCK - self.buffer.len();
            let take = room.min(blocks.len());
            self.buffer.extend(&blocks[..take]);
            blocks = &blocks[take..];
            if self.buffer.len() == BUFFER_BLOCKS * BLOCK {
                self.flush()?;
            }
        }
        Ok(true)
    }

    /// Leaves blocks as the new file has them, which is zeros; `false` as with [`Self::append`].
    pub(crate) fn skip(&mut self, blocks: u32) -> io::Result<bool> {
        if u64::from(self.next_block()) + u64::from(blocks) > u64::from(self.max_blocks) {
            return Ok(false);
        }
        self.flush()?;
        self.base += blocks;
        Ok(true)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let blocks = (self.buffer.len() / BLOCK) as u32;
            self.out.write_buffer(self.base, &mut self.buffer)?;
            if self.buffer.room() < BUFFER_BLOCKS * BLOCK {
                self.buffer = PageBuffer::with_capacity(BUFFER_BLOCKS * BLOCK);
            }
            self.base += blocks;
        }
        Ok(())
    }

    /// Writes at a fixed place, past the buffer.
    pub(crate) fn write_at(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        self.out.write_blocks(block, bytes)
    }
}

/// What stops content: the disk's own error, or the layer's fault.
pub(crate) enum ContentError {
    Output(io::Error),
    Fault(LayerFault),
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        ContentError::Output(error)
    }
}

impl From<TarFault> for ContentError {
    fn from(fault: TarFault) -> Self {
        ContentError::Fault(fault.into())
    }
}

impl From<LayerFault> for ContentError {
    fn from(fault: LayerFault) -> Self {
        ContentError::Fault(fault)
    }
}

/// Takes one file's bytes and holes and yields its extents.
pub(crate) struct FileWriter<'a, 'o> {
    appender: &'a mut Appender<'o>,
    limits: &'a Limits,
    /// Logical block the next complete block gets, zero blocks held back included.
    logical: u64,
    /// Complete zero blocks held back: a hole, if the run gets long enough.
    zeros: u64,
    partial: Vec<u8>,
    extents: Vec<Extent>,
}

impl<'a, 'o> FileWriter<'a, 'o> {
    pub(crate) fn new(appender: &'a mut Appender<'o>, limits: &'a Limits) -> Self {
        FileWriter {
            appender,
            limits,
            logical: 0,
            zeros: 0,
            partial: Vec::new(),
            extents: Vec::new(),
        }
    }

    pub(crate) fn data(&mut self, mut bytes: &[u8]) -> Result<(), ContentError> {
        if !self.partial.is_empty() {
            let take = bytes.len().min(BLOCK - self.partial.len());
            self.partial.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            self.complete_partial()?;
        }
        let whole = bytes.len() / BLOCK * BLOCK;
        let (mut blocks, rest) = bytes.split_at(whole);
        while !blocks.is_empty() {
            let zero = count_blocks(blocks, true);
            self.zeros += zero as u64;
            self.logical += zero as u64;
            blocks = &blocks[zero * BLOCK..];
            let full = count_blocks(blocks, false);
            self.blocks(&blocks[..full * BLOCK])?;
            blocks = &blocks[full * BLOCK..];
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    pub(crate) fn hole(&mut self, mut length: u64) -> Result<(), ContentError> {
        if !self.partial.is_empty() {
            let take = length.min((BLOCK - self.partial.len()) as u64);
            self.partial.resize(self.partial.len() + take as usize, 0);
            length -= take;
            self.complete_partial()?;
        }
        let whole = length / BLOCK as u64;
        self.zeros += whole;
        self.logical += whole;
        let rest = (length % BLOCK as u64) as usize;
        self.partial.resize(self.partial.len() + rest, 0);
        Ok(())
    }

    /// The file is complete: its extents.
    pub(crate) fn finish(mut self) -> Result<Extents, ContentError> {
        if !self.partial.is_empty() {
            self.partial.resize(BLOCK, 0);
            self.complete_partial()?;
        }
        Ok(Extents::of(self.extents))
    }

    fn complete_partial(&mut self) -> Result<(), ContentError> {
        if self.partial.len() < BLOCK {
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        if partial == ZEROS {
            self.zeros += 1;
            self.logical += 1;
        } else {
            self.blocks(&partial)?;
        }
        partial.clear();
        self.partial = partial;
        Ok(())
    }

    /// Appends blocks that are not zero.
    fn blocks(&mut self, blocks: &[u8]) -> Result<(), ContentError> {
        if blocks.is_empty() {
            return Ok(());
        }
        if self.zeros > 0 && self.zeros < MIN_HOLE_BLOCKS {
            for _ in 0..self.zeros {
                self.append(&ZEROS, self.logical - self.zeros)?;
                self.zeros -= 1;
            }
        }
        self.zeros = 0;
        let logical = self.logical;
        self.append(blocks, logical)?;
        self.logical += (blocks.len() / BLOCK) as u64;
        Ok(())
    }

    fn append(&mut self, blocks: &[u8], logical: u64) -> Result<(), ContentError> {
        let start = self.appender.next_block();
        if !self.appender.append(blocks)? {
            return Err(LayerFault::Limit {
                what: "bytes on the disk",
                field: "max_disk_bytes",
                limit: self.limits.max_disk_bytes,
                entry: String::new(),
            }
            .into());
        }
        let length = (blocks.len() / BLOCK) as u32;
        // A file is at most 8 TiB, so its block numbers fit.
        let logical = u32::try_from(logical)
            .map_err(|_| io::Error::other("a file is larger than ext4 holds"))?;
        match self.extents.last_mut() {
            Some(last)
                if last.logical + last.length == logical && last.start + last.length == start =>
            {
                last.length += length;
            }
            _ => {
                if (self.extents.len() as u64 + 1) * size_of::<Extent>() as u64
                    > self.limits.max_tree_bytes
                {
                    return Err(LayerFault::Limit {
                        what: "bytes of memory for the tree",
                        field: "max_tree_bytes",
                        limit: self.limits.max_tree_bytes,
                        entry: String::new(),
                    }
                    .into());
                }
                self.extents.push(Extent {
                    logical,
                    start,
                    length,
                });
            }
        }
        Ok(())
    }
}

/// How many blocks at the front are all zero (or all not).
fn count_blocks(blocks: &[u8], zero: bool) -> usize {
    blocks
        .chunks_exact(BLOCK)
        .take_while(|block| (*block == ZEROS) == zero)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory(Vec<u8>);

    impl BlockFile for Memory {
        fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
            let at = block as usize * BLOCK;
            if self.0.len() < at + bytes.len() {
                self.0.resize(at + bytes.len(), 0);
            }
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn write(pieces: &[(&[u8], u64)]) -> (Vec<u8>, Extents) {
        let mut memory = Memory::default();
        let limits = Limits::default();
        let mut appender = Appender::new(&mut memory, 0, 1 << 30);
        let mut file = FileWriter::new(&mut appender, &limits);
        for (data, hole) in pieces {
            assert!(file.data(data).is_ok());
            assert!(file.hole(*hole).is_ok());
        }
        let Ok(extents) = file.finish() else {
            panic!("finish")
        };
        appender.flush().unwrap();
        let mut content = Vec::new();
        for extent in extents.as_slice() {
            content.resize(extent.logical as usize * BLOCK, 0);
            let at = extent.start as usize * BLOCK;
            content.extend_from_slice(&memory.0[at..at + extent.length as usize * BLOCK]);
        }
        (content, extents)
    }

    #[test]
    fn long_zero_runs_are_holes_and_short_ones_are_not() {
        let (content, extents) = write(&[(&[1; BLOCK], 7 * BLOCK as u64), (&[2; 5], 0)]);
        assert_eq!(extents.as_slice().len(), 1);
        assert_eq!(content.len(), 9 * BLOCK);
        let (content, extents) = write(&[(&[1; 10], 1 << 20), (&[2; 5], 3 << 20)]);
        assert_eq!(
            extents
                .as_slice()
                .iter()
                .map(|e| (e.logical, e.length))
                .collect::<Vec<_>>(),
            [(0, 1), ((1 << 20) / BLOCK as u32, 1)]
        );
        assert_eq!(&content[10 + (1 << 20)..][..5], &[2; 5]);
        assert_eq!(write(&[(&[0; 3 * BLOCK], 12)]).1, Extents::None);
    }
}
