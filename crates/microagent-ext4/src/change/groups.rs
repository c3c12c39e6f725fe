//! Block groups: which blocks and inodes are free.

use std::collections::{BTreeMap, HashMap, btree_map::Entry};

use super::BLOCK;
use crate::{
    attributes::Attributes,
    bytes::{crc32c, put16, put32, u16_at, u32_at, wide},
    error::{Error, Result},
    extent::Map,
    superblock::Superblock,
    volume::Volume,
};

mod flag {
    pub(super) const INODE_UNINIT: u16 = 0x1;
    pub(super) const BLOCK_UNINIT: u16 = 0x2;
}

/// What is known of one group.
#[derive(Clone, Debug)]
struct Group {
    raw: Vec<u8>,
    blocks: Option<Vec<u8>>,
    inodes: Option<Vec<u8>>,
    changed: bool,
}

/// All groups, and what is taken from and given back to them.
#[derive(Debug)]
pub(super) struct Groups {
    superblock: Superblock,
    groups: Vec<Group>,
    /// Where the search for free blocks goes on.
    cursor: u64,
    /// Blocks that are free after the commit; until then they hold what was before.
    freed: Vec<(u64, u64)>,
    /// Attributes of new inodes, as they were set.
    attributes: HashMap<u32, Attributes>,
    free_blocks: u64,
    free_inodes: u32,
}

impl Group {
    fn flags(&self) -> u16 {
        u16_at(&self.raw, 0x12)
    }

    fn number(&self, low: usize, high: usize) -> u64 {
        wide(u32_at(&self.raw, low), u32_at(&self.raw, high))
    }

    fn count(&self, low: usize, high: usize) -> u32 {
        u32::from(u16_at(&self.raw, low)) | u32::from(u16_at(&self.raw, high)) << 16
    }

    fn set_count(&mut self, low: usize, high: usize, value: u32) {
        put16(&mut self.raw, low, value as u16);
        if self.raw.len() > high {
            put16(&mut self.raw, high, (value >> 16) as u16);
        }
        self.changed = true;
    }

    fn free_blocks(&self) -> u32 {
        self.count(0xc, 0x2c)
    }

    fn free_inodes(&self) -> u32 {
        self.count(0xe, 0x2e)
    }

    fn directories(&self) -> u32 {
        self.count(0x10, 0x30)
    }

    /// How many inodes at the table's end were never used.
    fn unused_inodes(&self) -> u32 {
        self.count(0x1c, 0x32)
    }

    fn block_bitmap(&self) -> u64 {
        self.number(0x0, 0x20)
    }

    fn inode_bitmap(&self) -> u64 {
        self.number(0x4, 0x24)
    }
}

impl Groups {
    pub(super) fn read(volume: &Volume) -> Result<Self> {
        let superblock = volume.superblock().clone();
        let mut groups = Vec::new();
        for group in 0..superblock.groups {
            groups.push(Group {
                raw: volume.descriptor(group)?,
                blocks: None,
                inodes: None,
                changed: false,
            });
        }
        let free_blocks = groups
            .iter()
            .map(|group| u64::from(group.free_blocks()))
            .sum();
        let free_inodes = groups.iter().map(Group::free_inodes).sum();
        Ok(Self {
            superblock,
            groups,
            cursor: 0,
            freed: Vec::new(),
            attributes: HashMap::new(),
            free_blocks,
            free_inodes,
        })
    }

    pub(super) fn fresh_attributes(&self, inode: u32) -> Option<&Attributes> {
        self.attributes.get(&inode)
    }

    pub(super) fn remember_attributes(&mut self, inode: u32, attributes: &Attributes) {
        self.attributes.insert(inode, attributes.clone());
    }

    fn group_of_inode(&self, inode: u32) -> (usize, u32) {
        let index = inode.saturating_sub(1);
        let per_group = self.superblock.inodes_per_group;
        ((index / per_group) as usize, index % per_group)
    }

    /// Takes a free inode, in the group of `near` if there is one; gives its number.
    pub(super) fn take_inode(&mut self, volume: &Volume, near: u32) -> Result<u32> {
        let (near, _) = self.group_of_inode(near);
        let count = self.groups.len();
        for step in 0..count {
            let index = (near + step) % count;
            if self.groups[index].free_inodes() == 0 {
                continue;
            }
            let per_group = self.superblock.inodes_per_group as usize;
            let first = if index == 0 { 10 } else { 0 };
            let bitmap = self.inode_bitmap(volume, index)?;
            let Some(bit) = next_zero(bitmap, first, per_group) else {
                continue;
            };
            set(bitmap, bit);
            let group = &mut self.groups[index];
            group.set_count(0xe, 0x2e, group.free_inodes() - 1);
            let unused = self.superblock.inodes_per_group - (bit as u32 + 1);
            if group.unused_inodes() > unused {
                group.set_count(0x1c, 0x32, unused);
            }
            let flags = group.flags() & !flag::INODE_UNINIT;
            put16(&mut group.raw, 0x12, flags);
            self.free_inodes = self.free_inodes.saturating_sub(1);
            return Ok(index as u32 * self.superblock.inodes_per_group + bit as u32 + 1);
        }
        Err(Error::Full {
            what: "another inode".to_owned(),
            free: u64::from(self.free_inodes),
        })
    }

    /// Gives an inode back.
    pub(super) fn free_inode(&mut self, volume: &Volume, inode: u32) -> Result<()> {
        let (index, bit) = self.group_of_inode(inode);
        let bitmap = self.inode_bitmap(volume, index)?;
        if !is_set(bitmap, bit as usize) {
            return Err(Error::damaged(format!("inode {inode} is in use, but free")));
        }
        clear(bitmap, bit as usize);
        let group = &mut self.groups[index];
        group.set_count(0xe, 0x2e, group.free_inodes() + 1);
        self.free_inodes += 1;
        self.attributes.remove(&inode);
        Ok(())
    }

    /// Counts directories of an inode's group.
    pub(super) fn count_directory(&mut self, inode: u32, step: i32) {
        let (index, _) = self.group_of_inode(inode);
        let group = &mut self.groups[index];
        group.set_count(0x10, 0x30, group.directories().saturating_add_signed(step));
    }

    /// Whether all inodes of the block of the table that this one is in were never used, so that
    /// the block needs no journal, and nothing in it is kept.
    pub(super) fn was_unused(&self, volume: &Volume, inode: u32) -> Result<bool> {
        let (index, bit) = self.group_of_inode(inode);
        let before = volume.descriptor(index as u32)?;
        let before = Group {
            raw: before,
            blocks: None,
            inodes: None,
            changed: false,
        };
        let per_group = self.superblock.inodes_per_group;
        let used = if before.flags() & flag::INODE_UNINIT != 0 {
            0
        } else {
            per_group.saturating_sub(before.unused_inodes())
        };
        let per_block = (BLOCK / self.superblock.inode_size) as u32;
        Ok(bit / per_block * per_block >= used)
    }

    fn inode_bitmap(&mut self, volume: &Volume, index: usize) -> Result<&mut Vec<u8>> {
        let per_group = self.superblock.inodes_per_group as usize;
        let group = &mut self.groups[index];
        if group.inodes.is_none() {
            group.inodes = Some(if group.flags() & flag::INODE_UNINIT != 0 {
                // Never written: all free, and what is beyond the last one is not there.
                let mut bitmap = vec![0xff; BLOCK];
                bitmap[..per_group / 8].fill(0);
                bitmap
            } else {
                volume.block(group.inode_bitmap())?
            });
        }
        group
            .inodes
            .as_mut()
            .ok_or_else(|| Error::damaged("a bitmap is not there"))
    }

    fn block_bitmap(&mut self, volume: &Volume, index: usize) -> Result<&mut Vec<u8>> {
        let group = &mut self.groups[index];
        if group.blocks.is_none() {
            group.blocks = Some(volume.block(group.block_bitmap())?);
        }
        group
            .blocks
            .as_mut()
            .ok_or_else(|| Error::damaged("a bitmap is not there"))
    }

    /// How many blocks a group has.
    fn blocks_in(&self, index: usize) -> usize {
        let per_group = u64::from(self.superblock.blocks_per_group);
        let first = index as u64 * per_group;
        (self.superblock.blocks - first).min(per_group) as usize
    }

    /// Takes a run of free blocks, as long as it is but no longer than `want`.
    pub(super) fn take_blocks(&mut self, volume: &Volume, want: u64) -> Result<(u64, u64)> {
        let per_group = u64::from(self.superblock.blocks_per_group);
        let count = self.groups.len();
        let begin = (self.cursor / per_group) as usize % count;
        // Once around, and the first group again from its beginning.
        for step in 0..=count {
            let index = (begin + step) % count;
            let group = &self.groups[index];
            if group.free_blocks() == 0 || group.flags() & flag::BLOCK_UNINIT != 0 {
                continue;
            }
            let from = if step == 0 {
                (self.cursor % per_group) as usize
            } else {
                0
            };
            let blocks = self.blocks_in(index);
            let bitmap = self.block_bitmap(volume, index)?;
            let Some(start) = next_zero(bitmap, from, blocks) else {
                continue;
            };
            let most = start.saturating_add(usize::try_from(want).unwrap_or(usize::MAX));
            let most = most.min(blocks);
            let end = (start..most)
                .find(|bit| is_set(bitmap, *bit))
                .unwrap_or(most);
            for bit in start..end {
                set(bitmap, bit);
            }
            let length = (end - start) as u64;
            let group = &mut self.groups[index];
            let free = group.free_blocks().saturating_sub(length as u32);
            group.set_count(0xc, 0x2c, free);
            self.free_blocks = self.free_blocks.saturating_sub(length);
            let first = index as u64 * per_group + start as u64;
            self.cursor = first + length;
            return Ok((first, length));
        }
        Err(Error::Full {
            what: format!("{} KiB more", want.saturating_mul(BLOCK as u64 / 1024)),
            free: self.free_blocks,
        })
    }

    /// Takes one free block.
    pub(super) fn take_block(&mut self, volume: &Volume) -> Result<u64> {
        Ok(self.take_blocks(volume, 1)?.0)
    }

    /// Gives blocks back, once the change is committed.
    pub(super) fn free_blocks(&mut self, start: u64, length: u64) {
        self.freed.push((start, length));
    }

    /// Gives everything that an extent tree holds back.
    pub(super) fn free_map(&mut self, map: &Map) {
        for extent in &map.extents {
            self.free_blocks(extent.start, extent.length);
        }
        for node in &map.nodes {
            self.free_blocks(*node, 1);
        }
    }

    fn give_back(&mut self, volume: &Volume) -> Result<()> {
        let per_group = u64::from(self.superblock.blocks_per_group);
        for (start, length) in std::mem::take(&mut self.freed) {
            for block in start..start.saturating_add(length) {
                let index = (block / per_group) as usize;
                if index >= self.groups.len() {
                    return Err(Error::damaged(format!("block {block} is beyond its end")));
                }
                if self.groups[index].flags() & flag::BLOCK_UNINIT != 0 {
                    return Err(Error::damaged(format!("block {block} is in use, but free")));
                }
                let bitmap = self.block_bitmap(volume, index)?;
                let bit = (block % per_group) as usize;
                if !is_set(bitmap, bit) {
                    return Err(Error::damaged(format!("block {block} is in use twice")));
                }
                clear(bitmap, bit);
                let group = &mut self.groups[index];
                group.set_count(0xc, 0x2c, group.free_blocks() + 1);
                self.free_blocks += 1;
            }
        }
        Ok(())
    }

    /// Adds every block that changes: bitmaps, descriptors and the superblock.
    pub(super) fn finish(
        &mut self,
        volume: &Volume,
        blocks: &mut BTreeMap<u64, Vec<u8>>,
    ) -> Result<()> {
        self.give_back(volume)?;
        let seed = self.superblock.seed;
        for (index, group) in self.groups.iter_mut().enumerate() {
            if !group.changed {
                continue;
            }
            if let Some(bitmap) = &group.blocks {
                let sum = crc32c(
                    seed,
                    &bitmap[..self.superblock.blocks_per_group as usize / 8],
                );
                put_sum(&mut group.raw, 0x18, 0x38, sum);
                blocks.insert(group.block_bitmap(), bitmap.clone());
            }
            if let Some(bitmap) = &group.inodes {
                let sum = crc32c(
                    seed,
                    &bitmap[..self.superblock.inodes_per_group as usize / 8],
                );
                put_sum(&mut group.raw, 0x1a, 0x3a, sum);
                blocks.insert(group.inode_bitmap(), bitmap.clone());
            }
            put16(&mut group.raw, 0x1e, 0);
            let sum = crc32c(crc32c(seed, &(index as u32).to_le_bytes()), &group.raw);
            put16(&mut group.raw, 0x1e, sum as u16);
            let (block, at) = volume.descriptor_place(index as u32);
            let bytes = match blocks.entry(block) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(volume.block(block)?),
            };
            bytes[at..at + group.raw.len()].copy_from_slice(&group.raw);
        }
        put32(&mut self.superblock.raw, 0xc, self.free_blocks as u32);
        if self.superblock.desc_size > 32 {
            put32(
                &mut self.superblock.raw,
                0x158,
                (self.free_blocks >> 32) as u32,
            );
        }
        put32(&mut self.superblock.raw, 0x10, self.free_inodes);
        Ok(())
    }

    /// The superblock with the counts of the change in it.
    pub(super) fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}

fn put_sum(raw: &mut [u8], low: usize, high: usize, sum: u32) {
    put16(raw, low, sum as u16);
    if raw.len() > high {
        put16(raw, high, (sum >> 16) as u16);
    }
}

fn is_set(bitmap: &[u8], bit: usize) -> bool {
    // What is not there is not free.
    bitmap
        .get(bit / 8)
        .is_none_or(|byte| byte & 1 << (bit % 8) != 0)
}

fn set(bitmap: &mut [u8], bit: usize) {
    if let Some(byte) = bitmap.get_mut(bit / 8) {
        *byte |= 1 << (bit % 8);
    }
}

fn clear(bitmap: &mut [u8], bit: usize) {
    if let Some(byte) = bitmap.get_mut(bit / 8) {
        *byte &= !(1 << (bit % 8));
    }
}

/// The first free bit from `from` on, below `end`.
fn next_zero(bitmap: &[u8], from: usize, end: usize) -> Option<usize> {
    let mut bit = from;
    while bit < end {
        if bit.is_multiple_of(8) && bitmap.get(bit / 8) == Some(&0xff) {
            bit += 8;
        } else if is_set(bitmap, bit) {
            bit += 1;
        } else {
            return Some(bit);
        }
    }
    None
}
