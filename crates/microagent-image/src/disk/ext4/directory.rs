//! Directory blocks: linear while they fit one block, hashed (htree) beyond.

use mkext4::csum;
use mkext4::dirhash::{Signedness, half_md4};

use crate::disk::content::BLOCK;

/// Bytes of the checksum at a leaf's end, disguised as an entry.
const TAIL: usize = 12;
const USABLE: usize = BLOCK - TAIL;
const ROOT_RECORDS_AT: usize = 0x20;
const NODE_RECORDS_AT: usize = 8;
/// Eight-byte records, with eight bytes left for the checksum.
const ROOT_LIMIT: usize = (BLOCK - ROOT_RECORDS_AT - 8) / 8;
const NODE_LIMIT: usize = (BLOCK - NODE_RECORDS_AT - 8) / 8;

pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: u8,
}

/// All blocks of a directory; `None` where even a two-level index is too small.
pub(super) fn render(
    inode: u32,
    parent: u32,
    entries: &[Entry<'_>],
    hash_seed: [u32; 4],
    checksum_seed: u32,
) -> Option<Vec<u8>> {
    let seed = csum::inode_seed(checksum_seed, inode, 0);
    let dots = [
        Entry {
            name: b".",
            inode,
            kind: 2,
        },
        Entry {
            name: b"..",
            inode: parent,
            kind: 2,
        },
    ];
    let total: usize = dots.iter().chain(entries).map(record_length).sum();
    if total <= USABLE {
        let mut block = vec![0; BLOCK];
        fill_leaf(&mut block, dots.iter().chain(entries), seed);
        return Some(block);
    }
    let mut hashed: Vec<(u32, u32, usize)> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let (hash, minor) = half_md4(&hash_seed, Signedness::Signed, entry.name);
            (hash, minor, index)
        })
        .collect();
    hashed.sort_unstable();
    // Leaves by hash; a record's lowest bit says that its hash began in the leaf before.
    let mut leaves: Vec<std::ops::Range<usize>> = Vec::new();
    let mut records: Vec<(u32, u32)> = Vec::new();
    let (mut begin, mut used) = (0, 0);
    for (position, (_, _, index)) in hashed.iter().enumerate() {
        let length = record_length(&entries[*index]);
        if used + length > USABLE {
            leaves.push(begin..position);
            (begin, used) = (position, 0);
        }
        used += length;
    }
    leaves.push(begin..hashed.len());
    for (index, leaf) in leaves.iter().enumerate() {
        let hash = hashed[leaf.start].0;
        let continued = leaf.start > 0 && hashed[leaf.start - 1].0 == hash;
        records.push((hash | u32::from(continued), u32::try_from(index).ok()? + 1));
    }
    let mut blocks = vec![0; BLOCK * (1 + leaves.len())];
    for (index, leaf) in leaves.iter().enumerate() {
        let block = &mut blocks[(index + 1) * BLOCK..(index + 2) * BLOCK];
        fill_leaf(
            block,
            hashed[leaf.clone()]
                .iter()
                .map(|(_, _, entry)| &entries[*entry]),
            seed,
        );
    }
    let mut levels = 0;
    if records.len() > ROOT_LIMIT {
        levels = 1;
        let mut above = Vec::new();
        for chunk in records.chunks(NODE_LIMIT) {
            let mut node = vec![0; BLOCK];
            // An empty entry that spans the block hides the index from readers that do not know it.
            node[4..6].copy_from_slice(&(BLOCK as u16).to_le_bytes());
            fill_index(&mut node, NODE_RECORDS_AT, NODE_LIMIT, chunk, seed);
            above.push((chunk.first()?.0, u32::try_from(blocks.len() / BLOCK).ok()?));
            blocks.extend_from_slice(&node);
        }
        records = above;
        if records.len() > ROOT_LIMIT {
            return None;
        }
    }
    let root = &mut blocks[..BLOCK];
    write_entry(root, 0, &dots[0], 12);
    write_entry(root, 12, &dots[1], BLOCK - 12);
    // Hash version half MD4, eight bytes of information.
    root[0x1c] = 1;
    root[0x1d] = 8;
    root[0x1e] = levels;
    fill_index(root, ROOT_RECORDS_AT, ROOT_LIMIT, &records, seed);
    Some(blocks)
}

fn record_length(entry: &Entry<'_>) -> usize {
    (8 + entry.name.len()).next_multiple_of(4)
}

fn write_entry(block: &mut [u8], at: usize, entry: &Entry<'_>, length: usize) {
    block[at..at + 4].copy_from_slice(&entry.inode.to_le_bytes());
    block[at + 4..at + 6].copy_from_slice(&(length as u16).to_le_bytes());
    block[at + 6] = entry.name.len() as u8;
    block[at + 7] = entry.kind;
    block[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
}

/// The last entry reaches to the checksum.
fn fill_leaf<'e, 'n: 'e>(
    block: &mut [u8],
    entries: impl Iterator<Item = &'e Entry<'n>>,
    seed: u32,
) {
    let mut entries = entries.peekable();
    let mut at = 0;
    while let Some(entry) = entries.next() {
        let length = if entries.peek().is_some() {
            record_length(entry)
        } else {
            USABLE - at
        };
        write_entry(block, at, entry, length);
        at += length;
    }
    block[USABLE + 4..USABLE + 6].copy_from_slice(&(TAIL as u16).to_le_bytes());
    block[USABLE + 7] = 0xde;
    let checksum = csum::dirent_block(seed, block);
    block[BLOCK - 4..].copy_from_slice(&checksum.to_le_bytes());
}

/// The first record's hash is implied; its place holds limit and count.
fn fill_index(block: &mut [u8], at: usize, limit: usize, records: &[(u32, u32)], seed: u32) {
    for (index, (hash, number)) in records.iter().enumerate() {
        let record = &mut block[at + index * 8..at + index * 8 + 8];
        record[..4].copy_from_slice(&hash.to_le_bytes());
        record[4..].copy_from_slice(&number.to_le_bytes());
    }
    block[at..at + 2].copy_from_slice(&(limit as u16).to_le_bytes());
    block[at + 2..at + 4].copy_from_slice(&(records.len() as u16).to_le_bytes());
    let checksum = csum::dx_block(seed, block, at, records.len() as u16, limit as u16);
    block[at + limit * 8 + 4..at + limit * 8 + 8].copy_from_slice(&checksum.to_le_bytes());
}
