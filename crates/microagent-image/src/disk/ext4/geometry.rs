//! Which blocks and inodes there are, in how many groups, and the bitmaps that say which are taken.

use super::super::content::BLOCK;
use super::{
    DESCRIPTOR, FIRST_CONTENT_BLOCK, GROUP_BLOCKS, Headroom, INODES_PER_BLOCK, MAX_GROUPS,
};

/// As many as a block of a bitmap has bits.
const MAX_GROUP_INODES: u32 = GROUP_BLOCKS;

/// Groups and inode tables behind the content.
#[derive(Debug)]
pub(super) struct Geometry {
    pub(super) blocks: u32,
    pub(super) groups: u32,
    pub(super) group_inodes: u32,
    /// First block behind the last inode table.
    pub(super) metadata_end: u32,
}

impl Geometry {
    /// More groups need more bitmaps, which may need another group: grows until it holds.
    pub(super) fn new(
        content_end: u32,
        used_inodes: u32,
        headroom: Option<Headroom>,
    ) -> Option<Self> {
        let inodes = used_inodes.checked_add(headroom.map_or(0, |room| room.inodes))?;
        let spare = headroom.map_or(0, |room| room.bytes.div_ceil(BLOCK as u64));
        let mut groups = inodes
            .div_ceil(MAX_GROUP_INODES)
            .max(content_end.div_ceil(GROUP_BLOCKS))
            .max(1);
        loop {
            if groups > MAX_GROUPS {
                return None;
            }
            let group_inodes = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let metadata_end = u64::from(content_end)
                + u64::from(groups) * (2 + u64::from(group_inodes / INODES_PER_BLOCK));
            let metadata_end = u32::try_from(metadata_end).ok()?;
            let end = u32::try_from(u64::from(metadata_end) + spare).ok()?;
            let needed = end.div_ceil(GROUP_BLOCKS);
            if needed <= groups {
                // Inodes may need more groups than blocks do; the last group then has one block.
                let blocks = end.max((groups - 1) * GROUP_BLOCKS + 1);
                return Some(Geometry {
                    blocks,
                    groups,
                    group_inodes,
                    metadata_end,
                });
            }
            groups = needed;
        }
    }

    /// A disk of a given size, with inodes for files of 16 KiB; or how many blocks it would have to have.
    pub(super) fn of_size(
        content_end: u32,
        used_inodes: u32,
        bytes: u64,
    ) -> Result<Self, Option<u32>> {
        let blocks = u32::try_from(bytes / BLOCK as u64).map_err(|_| None)?;
        let groups = blocks.div_ceil(GROUP_BLOCKS).max(1);
        if groups > MAX_GROUPS {
            return Err(None);
        }
        let inodes = used_inodes.saturating_add(blocks / ((16 << 10) / BLOCK as u32));
        let group_inodes = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
        let metadata_end = u64::from(content_end)
            + u64::from(groups) * (2 + u64::from(group_inodes / INODES_PER_BLOCK));
        let metadata_end = u32::try_from(metadata_end).map_err(|_| None)?;
        if metadata_end > blocks || group_inodes > MAX_GROUP_INODES {
            return Err(Some(
                metadata_end.max(inodes / MAX_GROUP_INODES * GROUP_BLOCKS),
            ));
        }
        Ok(Geometry {
            blocks,
            groups,
            group_inodes,
            metadata_end,
        })
    }

    pub(super) fn table_blocks(&self) -> u32 {
        self.group_inodes / INODES_PER_BLOCK
    }

    pub(super) fn descriptor_blocks(&self) -> u32 {
        (self.groups * DESCRIPTOR as u32).div_ceil(BLOCK as u32)
    }
}

pub(super) struct Bitmaps {
    pub(super) used_end: u32,
    pub(super) descriptor_blocks: u32,
}

impl Bitmaps {
    /// One group's block bitmap and its free blocks. `freed` is sorted.
    pub(super) fn render(
        &self,
        geometry: &Geometry,
        group: u32,
        freed: &[(u32, u32)],
    ) -> (Vec<u8>, u32) {
        let first = group * GROUP_BLOCKS;
        let end =
            (u64::from(first) + u64::from(GROUP_BLOCKS)).min(u64::from(geometry.blocks)) as u32;
        let mut bitmap = vec![0u8; BLOCK];
        let mut fill = |from: u32, to: u32, used: bool| {
            let (from, to) = (from.max(first), to.min(end));
            let mut block = from;
            while block < to {
                let bit = block - first;
                if bit.is_multiple_of(8) && to - block >= 8 {
                    bitmap[(bit / 8) as usize] = if used { 0xff } else { 0 };
                    block += 8;
                } else {
                    let mask = 1 << (bit % 8);
                    let byte = &mut bitmap[(bit / 8) as usize];
                    *byte = if used { *byte | mask } else { *byte & !mask };
                    block += 1;
                }
            }
        };
        fill(0, 1 + self.descriptor_blocks, true);
        fill(FIRST_CONTENT_BLOCK, self.used_end, true);
        // The run before the first that starts in this group may reach into it.
        let from = freed
            .partition_point(|(start, _)| *start < first)
            .saturating_sub(1);
        for (start, length) in freed[from..].iter().take_while(|(start, _)| *start < end) {
            fill(*start, start.saturating_add(*length), false);
        }
        let used: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        let free = (end - first) - used;
        for bit in end - first..GROUP_BLOCKS {
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
        }
        (bitmap, free)
    }
}

/// Inodes are numbered densely, so the used ones come first; bits behind the group's inodes are set.
pub(super) fn inode_bitmap(used: u32, group_inodes: u32) -> Vec<u8> {
    let mut bitmap = vec![0u8; BLOCK];
    if used > 0 {
        for bit in (0..used).chain(group_inodes..GROUP_BLOCKS) {
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    bitmap
}
