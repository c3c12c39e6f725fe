//! Extent trees: which blocks of the disk are which blocks of a file.

use crate::{
    bytes::{u16_at, u32_at, wide},
    error::{Error, Result},
    inode::{CONTENT, Inode, flags},
    volume::Volume,
};

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block of the file.
    pub(crate) logical: u64,
    /// The first block of the disk.
    pub(crate) start: u64,
    /// How many.
    pub(crate) length: u64,
    /// Whether they hold data; otherwise they read as zeros.
    pub(crate) written: bool,
}

const MAGIC: u16 = 0xf30a;
const MAX_DEPTH: u16 = 5;
/// The longest extent that is written; a longer one is unwritten.
const MAX_WRITTEN: u16 = 32768;
/// The most extents of one file that are read.
const MAX_EXTENTS: usize = 1 << 20;
/// The most nodes of one tree that are read; full ones hold more than those extents.
const MAX_NODES: usize = 1 << 14;

/// Everything an inode's extent tree holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// In order, without overlap.
    pub(crate) extents: Vec<Extent>,
    /// Blocks of the tree itself.
    pub(crate) nodes: Vec<u64>,
}

impl Map {
    pub(crate) fn read(volume: &Volume, inode: &Inode) -> Result<Self> {
        let mut map = Self::default();
        if inode.flags() & flags::EXTENTS == 0 {
            return if inode.size() == 0 {
                Ok(map)
            } else {
                Err(Error::unknown(format!(
                    "block maps of ext3 (inode {})",
                    inode.number()
                )))
            };
        }
        let number = inode.number();
        // A node, its depth, and the first logical block it may hold.
        let mut left = vec![(inode.raw[CONTENT].to_vec(), None::<u16>)];
        while let Some((node, expected)) = left.pop() {
            let (magic, entries) = (u16_at(&node, 0), usize::from(u16_at(&node, 2)));
            let depth = u16_at(&node, 6);
            if magic != MAGIC
                || entries > (node.len() - 12) / 12
                || depth > MAX_DEPTH
                || expected.is_some_and(|expected| expected != depth)
            {
                return Err(damaged(number));
            }
            let entries = node[12..].chunks_exact(12).take(entries);
            if depth == 0 {
                for entry in entries {
                    map.push(volume, number, entry)?;
                }
                continue;
            }
            let mut children = Vec::new();
            for entry in entries {
                let block = wide(u32_at(entry, 4), u32::from(u16_at(entry, 8)));
                if map.nodes.len() >= MAX_NODES {
                    return Err(damaged(number));
                }
                map.nodes.push(block);
                children.push((volume.block(block)?, Some(depth - 1)));
            }
            left.extend(children.into_iter().rev());
        }
        Ok(map)
    }

    fn push(&mut self, volume: &Volume, number: u32, entry: &[u8]) -> Result<()> {
        let length = u16_at(entry, 4);
        let written = length <= MAX_WRITTEN;
        let extent = Extent {
            logical: u64::from(u32_at(entry, 0)),
            start: wide(u32_at(entry, 8), u32::from(u16_at(entry, 6))),
            length: u64::from(if written {
                length
            } else {
                length - MAX_WRITTEN
            }),
            written,
        };
        let end = self
            .extents
            .last()
            .map_or(0, |last| last.logical + last.length);
        let fits = extent.length > 0
            && extent.logical >= end
            && extent.start > 0
            && extent.start + extent.length <= volume.superblock().blocks;
        if !fits || self.extents.len() >= MAX_EXTENTS {
            return Err(damaged(number));
        }
        self.extents.push(extent);
        Ok(())
    }
}

fn damaged(number: u32) -> Error {
    Error::damaged(format!("inode {number} has a broken extent tree"))
}
