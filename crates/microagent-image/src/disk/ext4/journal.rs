//! An empty journal, for disks that are written to: its first block, and the inode that has it.

use mkext4::csum;
use mkext4::spec::{Inode, JournalSuperblock, iflags};

use super::super::content::{BLOCK, Extent};
use super::{INODE_SIZE, extents};

/// Its inode.
pub(super) const INODE: u32 = 8;
/// 16 MiB, as `mke2fs` gives a disk of half a GiB.
pub(super) const BLOCKS: u32 = (16 << 20) / BLOCK as u32;

/// Its first block; the others are zeros.
pub(super) fn first_block() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    JournalSuperblock {
        // A superblock of version 2, without features: the kernel adds those it wants.
        blocktype: 4,
        blocksize: BLOCK as u32,
        maxlen: BLOCKS,
        first: 1,
        sequence: 1,
        start: 0,
        errno: 0,
        feature_compat: 0,
        feature_incompat: 0,
        feature_ro_compat: 0,
        uuid: [0; 16],
        nr_users: 1,
        dynsuper: 0,
        max_transaction: 0,
        max_trans_data: 0,
        checksum_type: 0,
        num_fc_blocks: 0,
        head: 0,
        checksum: 0,
    }
    .encode(&mut block);
    block
}

/// The inode of a journal that begins at block `start`.
pub(super) fn inode(seed: u32, start: u32) -> [u8; INODE_SIZE] {
    let run = [Extent {
        logical: 0,
        start,
        length: BLOCKS,
    }];
    let mut inode = Inode {
        mode: 0o100_600,
        links_count: 1,
        extra_isize: 32,
        size: u64::from(BLOCKS) * BLOCK as u64,
        blocks: u64::from(BLOCKS) * (BLOCK as u64 / 512),
        flags: iflags::EXTENTS,
        block: extents::root(&run),
        ..Inode::default()
    };
    let mut raw = [0; INODE_SIZE];
    inode.encode(&mut raw);
    inode.checksum = csum::inode(seed, INODE, 0, &raw);
    inode.encode(&mut raw);
    raw
}

/// The superblock's copy of that inode's block map and size.
pub(super) fn backup(start: u32) -> [u32; 17] {
    let run = [Extent {
        logical: 0,
        start,
        length: BLOCKS,
    }];
    let mut copy = [0; 17];
    for (word, bytes) in copy.iter_mut().zip(extents::root(&run).chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    copy[16] = BLOCKS * BLOCK as u32;
    copy
}
