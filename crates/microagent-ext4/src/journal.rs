//! The journal: what was committed and has not reached its place yet. Reading it does not change
//! the disk; its blocks are seen where they belong.

use std::collections::HashMap;

use crate::{
    bytes::{be32_at, wide},
    error::{Error, Result},
    extent::Map,
    volume::Volume,
};

pub(crate) const MAGIC: u32 = 0xc03b_3998;
pub(crate) const INODE: u32 = 8;

/// The largest journal that is read.
const MAX_BLOCKS: usize = 1 << 20;

pub(crate) mod kind {
    pub(crate) const DESCRIPTOR: u32 = 1;
    pub(crate) const COMMIT: u32 = 2;
    pub(crate) const SUPERBLOCK: u32 = 4;
    pub(crate) const REVOKE: u32 = 5;
}

pub(crate) mod incompat {
    pub(crate) const REVOKE: u32 = 0x1;
    pub(crate) const WIDE: u32 = 0x2;
    pub(crate) const CSUM_V2: u32 = 0x8;
    pub(crate) const CSUM_V3: u32 = 0x10;
    pub(crate) const KNOWN: u32 = REVOKE | WIDE | CSUM_V2 | CSUM_V3;
}

pub(crate) mod tag {
    pub(crate) const ESCAPED: u32 = 1;
    pub(crate) const SAME_UUID: u32 = 2;
    pub(crate) const LAST: u32 = 8;
}

/// A journal's own blocks and its superblock.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    /// The disk's blocks, in the journal's order.
    pub(crate) blocks: Vec<u64>,
    pub(crate) superblock: Vec<u8>,
    pub(crate) first: u32,
    pub(crate) length: u32,
    pub(crate) sequence: u32,
    /// Where the first transaction is; 0 if there is none.
    pub(crate) start: u32,
    pub(crate) incompat: u32,
}

/// Where the newest version of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) block: u64,
    /// Whether its first bytes were changed so that it does not look like the journal's own.
    pub(crate) escaped: bool,
}

/// What a journal holds.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) newest: HashMap<u64, Copy>,
    /// The number the next transaction has.
    pub(crate) next_sequence: u32,
}

impl Journal {
    pub(crate) fn open(volume: &Volume) -> Result<Self> {
        let inode = volume.inode(INODE)?;
        let map = Map::read(volume, &inode)?;
        let mut blocks = Vec::new();
        for extent in &map.extents {
            if blocks.len() > MAX_BLOCKS {
                return Err(damaged("it is too large"));
            }
            if extent.logical != blocks.len() as u64 || !extent.written {
                return Err(damaged("it has holes"));
            }
            blocks.extend(extent.start..extent.start + extent.length);
        }
        let Some(first) = blocks.first() else {
            return Err(damaged("it is empty"));
        };
        let superblock = volume.block(*first)?;
        let field = |at| be32_at(&superblock, at);
        if field(0) != MAGIC || field(4) != kind::SUPERBLOCK {
            return Err(damaged("it has no superblock"));
        }
        let incompat = field(0x28);
        if incompat & !incompat::KNOWN != 0 {
            return Err(Error::unknown(format!(
                "features of its journal (0x{:x})",
                incompat & !incompat::KNOWN
            )));
        }
        let (length, first, start) = (field(0x10), field(0x14), field(0x1c));
        let fits = field(0xc) as usize == superblock.len()
            && length as usize <= blocks.len()
            && (1..length).contains(&first)
            && (start == 0 || (first..length).contains(&start));
        if !fits {
            return Err(damaged("its superblock does not fit it"));
        }
        blocks.truncate(length as usize);
        Ok(Self {
            first,
            length,
            sequence: field(0x18),
            start,
            incompat,
            blocks,
            superblock,
        })
    }

    pub(crate) fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    /// The bytes of a tag without its UUID.
    pub(crate) fn tag_size(&self) -> usize {
        if self.has(incompat::CSUM_V3) {
            return 16;
        }
        let wide = if self.has(incompat::WIDE) { 4 } else { 0 };
        let sum = if self.has(incompat::CSUM_V2) { 2 } else { 0 };
        8 + wide + sum
    }

    /// The bytes of a checksum at the end of a descriptor.
    pub(crate) fn tail_size(&self) -> usize {
        if self.has(incompat::CSUM_V2) || self.has(incompat::CSUM_V3) {
            4
        } else {
            0
        }
    }

    /// Goes through what was committed.
    pub(crate) fn replay(&self, volume: &Volume) -> Result<Replay> {
        let mut replay = Replay {
            newest: HashMap::new(),
            next_sequence: self.sequence,
        };
        if self.start == 0 {
            return Ok(replay);
        }
        let mut written: Vec<(u32, u64, Copy)> = Vec::new();
        let mut pending = Vec::new();
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut pending_revoked = Vec::new();
        let mut place = self.start;
        let mut left = self.length;
        let mut sequence = self.sequence;
        while left > 0 {
            let block = volume.raw_block(self.blocks[place as usize])?;
            if be32_at(&block, 0) != MAGIC || be32_at(&block, 8) != sequence {
                break;
            }
            place = self.after(place);
            left -= 1;
            match be32_at(&block, 4) {
                kind::DESCRIPTOR => {
                    for (target, escaped) in self.tags(&block) {
                        let Some(rest) = left.checked_sub(1) else {
                            return Err(damaged("a transaction is longer than it"));
                        };
                        left = rest;
                        let copy = Copy {
                            block: self.blocks[place as usize],
                            escaped,
                        };
                        pending.push((sequence, target, copy));
                        place = self.after(place);
                    }
                }
                kind::REVOKE => pending_revoked.extend(self.revoked(&block)),
                kind::COMMIT => {
                    written.append(&mut pending);
                    for target in pending_revoked.drain(..) {
                        revoked.insert(target, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        for (sequence, target, copy) in written {
            // Sequence numbers may wrap around.
            let dead = revoked
                .get(&target)
                .is_some_and(|at| at.wrapping_sub(sequence).cast_signed() >= 0);
            if dead {
                continue;
            }
            if target < volume.superblock().blocks {
                replay.newest.insert(target, copy);
            } else {
                return Err(damaged("it holds a block beyond the disk's end"));
            }
        }
        replay.next_sequence = sequence;
        Ok(replay)
    }

    pub(crate) fn after(&self, place: u32) -> u32 {
        if place + 1 < self.length {
            place + 1
        } else {
            self.first
        }
    }

    /// The blocks that follow a descriptor, and whether each was escaped.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool)> {
        let mut tags = Vec::new();
        let mut at = 12;
        while at + self.tag_size() <= block.len() - self.tail_size() {
            let v3 = self.has(incompat::CSUM_V3);
            let flags = if v3 {
                be32_at(block, at + 4)
            } else {
                be32_at(block, at + 4) & 0xffff
            };
            let high = if self.has(incompat::WIDE) {
                be32_at(block, at + 8)
            } else {
                0
            };
            tags.push((wide(be32_at(block, at), high), flags & tag::ESCAPED != 0));
            at += self.tag_size();
            if flags & tag::SAME_UUID == 0 {
                at += 16;
            }
            if flags & tag::LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let end = (be32_at(block, 12) as usize).min(block.len());
        let size = if self.has(incompat::WIDE) { 8 } else { 4 };
        let list = block.get(16..end).unwrap_or_default();
        list.chunks_exact(size)
            .map(|entry| match size {
                8 => wide(be32_at(entry, 4), be32_at(entry, 0)),
                _ => u64::from(be32_at(entry, 0)),
            })
            .collect()
    }
}

pub(crate) fn damaged(what: &str) -> Error {
    Error::damaged(format!("the journal: {what}"))
}
