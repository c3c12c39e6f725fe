//! Blocks of metadata that are new: extent trees and their checksums.

use super::{BLOCK, Change};
use crate::{
    bytes::{crc32c, put16, put32},
    error::{Error, Result},
    extent::Extent,
    inode::CONTENT,
};

/// Extents that an inode holds itself.
const IN_INODE: usize = 4;
/// Entries of a block of an extent tree, whose last four bytes are its checksum.
const IN_BLOCK: usize = (BLOCK - 12) / 12;
/// The longest extent.
const MAX_LENGTH: u64 = 32768;

/// The part of an extent tree that is in the inode.
pub(super) type Root = [u8; CONTENT.end - CONTENT.start];

impl Change {
    /// The checksum that everything of one inode begins with.
    pub(super) fn inode_seed(&self, number: u32, generation: u32) -> u32 {
        let seed = crc32c(self.volume.superblock().seed, &number.to_le_bytes());
        crc32c(seed, &generation.to_le_bytes())
    }

    /// Writes a new block of metadata to where nothing was.
    pub(super) fn write_new(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        self.volume.write_block(block, bytes)
    }

    /// Builds an extent tree; gives what goes into the inode and how many blocks the tree takes.
    pub(super) fn build_tree(&mut self, number: u32, extents: &[Extent]) -> Result<(Root, u64)> {
        let seed = self.inode_seed(number, self.inode(number)?.generation());
        let mut entries: Vec<[u8; 12]> = Vec::new();
        let mut starts: Vec<u32> = Vec::new();
        for extent in extents {
            let mut rest = *extent;
            while rest.length > 0 {
                let length = rest.length.min(MAX_LENGTH);
                let logical = u32::try_from(rest.logical).map_err(|_| Error::Impossible {
                    what: "a file cannot be larger than 16 TiB".to_owned(),
                })?;
                let mut entry = [0; 12];
                put32(&mut entry, 0, logical);
                put16(&mut entry, 4, length as u16);
                put16(&mut entry, 6, (rest.start >> 32) as u16);
                put32(&mut entry, 8, rest.start as u32);
                entries.push(entry);
                starts.push(logical);
                rest.logical += length;
                rest.start += length;
                rest.length -= length;
            }
        }
        let (mut depth, mut nodes) = (0, 0);
        while entries.len() > IN_INODE {
            let (mut above, mut above_starts) = (Vec::new(), Vec::new());
            for (entries, starts) in entries.chunks(IN_BLOCK).zip(starts.chunks(IN_BLOCK)) {
                let block = self.groups.take_block(&self.volume)?;
                let mut bytes = vec![0; BLOCK];
                node(&mut bytes, entries, IN_BLOCK, depth);
                let sum = crc32c(seed, &bytes[..BLOCK - 4]);
                put32(&mut bytes, BLOCK - 4, sum);
                self.write_new(block, &bytes)?;
                nodes += 1;
                let mut entry = [0; 12];
                put32(&mut entry, 0, starts.first().copied().unwrap_or(0));
                put32(&mut entry, 4, block as u32);
                put16(&mut entry, 8, (block >> 32) as u16);
                above.push(entry);
                above_starts.push(starts.first().copied().unwrap_or(0));
            }
            (entries, starts) = (above, above_starts);
            depth += 1;
        }
        Ok((root(&entries, depth), nodes))
    }
}

/// The tree of a file without content.
pub(super) fn empty_tree() -> Root {
    root(&[], 0)
}

fn root(entries: &[[u8; 12]], depth: u16) -> Root {
    let mut root = [0; CONTENT.end - CONTENT.start];
    node(&mut root, entries, IN_INODE, depth);
    root
}

fn node(bytes: &mut [u8], entries: &[[u8; 12]], room: usize, depth: u16) {
    put16(bytes, 0, 0xf30a);
    put16(bytes, 2, entries.len() as u16);
    put16(bytes, 4, room as u16);
    put16(bytes, 6, depth);
    for (index, entry) in entries.iter().enumerate() {
        bytes[12 + index * 12..][..12].copy_from_slice(entry);
    }
}
