//! Extent trees: where a file's blocks are, in the inode or in blocks of their own.

use mkext4::csum;

use crate::disk::content::{BLOCK, Extent};

const MAGIC: u16 = 0xf30a;
const IN_INODE: usize = 4;
/// Twelve-byte records in a block, behind the header and before the checksum.
const IN_BLOCK: usize = (BLOCK - 12 - 4) / 12;
/// Where the checksum is: right behind the last record that there could be.
const CHECKSUM_AT: usize = 12 + IN_BLOCK * 12;
/// The longest initialised extent.
const MAX_LENGTH: u32 = 32768;
/// The kernel reads at most five levels.
const MAX_DEPTH: u16 = 5;

/// Runs cut to the length one record holds.
fn pieces(extents: &[Extent]) -> impl Iterator<Item = Extent> + '_ {
    extents.iter().flat_map(|extent| {
        (0..extent.length.div_ceil(MAX_LENGTH)).map(move |piece| {
            let skip = piece * MAX_LENGTH;
            Extent {
                logical: extent.logical + skip,
                start: extent.start + skip,
                length: (extent.length - skip).min(MAX_LENGTH),
            }
        })
    })
}

pub(super) fn fits_inode(extents: &[Extent]) -> bool {
    pieces(extents).take(IN_INODE + 1).count() <= IN_INODE
}

/// The inode's 60 bytes for at most four records.
pub(super) fn root(extents: &[Extent]) -> [u8; 60] {
    let mut root = [0; 60];
    let mut count = 0;
    for (index, extent) in pieces(extents).take(IN_INODE).enumerate() {
        leaf_record(&mut root[12 + index * 12..], &extent);
        count += 1;
    }
    header(&mut root, count, IN_INODE, 0);
    root
}

/// The blocks of a tree, to be written from block `first` on, and the inode's 60 bytes.
pub(super) fn tree(
    extents: &[Extent],
    checksum_seed: u32,
    first: u32,
) -> Option<(Vec<u8>, [u8; 60])> {
    let pieces: Vec<Extent> = pieces(extents).collect();
    let mut blocks: Vec<u8> = Vec::new();
    let mut level: Vec<(u32, u32)> = Vec::new();
    for chunk in pieces.chunks(IN_BLOCK) {
        let mut block = vec![0; BLOCK];
        for (index, extent) in chunk.iter().enumerate() {
            leaf_record(&mut block[12 + index * 12..], extent);
        }
        level.push((
            chunk.first()?.logical,
            seal(&mut blocks, block, chunk.len(), 0, checksum_seed, first)?,
        ));
    }
    let mut depth = 1;
    while level.len() > IN_INODE {
        let mut above = Vec::new();
        for chunk in level.chunks(IN_BLOCK) {
            let mut block = vec![0; BLOCK];
            for (index, record) in chunk.iter().enumerate() {
                index_record(&mut block[12 + index * 12..], *record);
            }
            above.push((
                chunk.first()?.0,
                seal(&mut blocks, block, chunk.len(), depth, checksum_seed, first)?,
            ));
        }
        level = above;
        depth += 1;
        if depth > MAX_DEPTH {
            return None;
        }
    }
    let mut root = [0; 60];
    for (index, record) in level.iter().enumerate() {
        index_record(&mut root[12 + index * 12..], *record);
    }
    header(&mut root, level.len(), IN_INODE, depth);
    Some((blocks, root))
}

/// Header and checksum; returns the block's number.
fn seal(
    blocks: &mut Vec<u8>,
    mut block: Vec<u8>,
    count: usize,
    depth: u16,
    seed: u32,
    first: u32,
) -> Option<u32> {
    header(&mut block, count, IN_BLOCK, depth);
    let checksum = csum::extent_block(seed, &block[..CHECKSUM_AT + 4]);
    block[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    let number = first.checked_add(u32::try_from(blocks.len() / BLOCK).ok()?)?;
    blocks.extend_from_slice(&block);
    Some(number)
}

fn header(node: &mut [u8], count: usize, max: usize, depth: u16) {
    node[..2].copy_from_slice(&MAGIC.to_le_bytes());
    node[2..4].copy_from_slice(&(count as u16).to_le_bytes());
    node[4..6].copy_from_slice(&(max as u16).to_le_bytes());
    node[6..8].copy_from_slice(&depth.to_le_bytes());
}

fn leaf_record(record: &mut [u8], extent: &Extent) {
    record[..4].copy_from_slice(&extent.logical.to_le_bytes());
    record[4..6].copy_from_slice(&(extent.length as u16).to_le_bytes());
    record[8..12].copy_from_slice(&extent.start.to_le_bytes());
}

fn index_record(record: &mut [u8], (logical, block): (u32, u32)) {
    record[..4].copy_from_slice(&logical.to_le_bytes());
    record[4..8].copy_from_slice(&block.to_le_bytes());
}
