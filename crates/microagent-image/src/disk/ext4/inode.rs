//! One inode: a node's metadata and where its blocks are, encoded and checksummed.

use mkext4::csum;
use mkext4::spec::{Inode, iflags};

use super::super::content::{BLOCK, Extent};
use super::super::tree::{Kind, Node, NodeId};
use super::{INODE_SIZE, Value, Writer, extents};

/// Directories with more links than this say 1 (`dir_nlink`).
const LINK_MAX: u32 = 65_000;
/// The inode holds the value of an attribute.
const VALUE: u32 = 0x20_0000;
const MODE_TYPES: [(u8, u16); 7] = [
    (1, 0o100_000),
    (2, 0o040_000),
    (3, 0o020_000),
    (4, 0o060_000),
    (5, 0o010_000),
    (6, 0o140_000),
    (7, 0o120_000),
];

impl Writer<'_, '_, '_> {
    /// The inode of a node; `index` is its place in `order`.
    pub(super) fn inode(&self, id: NodeId, index: usize) -> [u8; INODE_SIZE] {
        let node = &self.tree.nodes[id as usize];
        let number = self.numbers[id as usize];
        let placed = self.placed[index];
        let set = &self.tree.xattrs[node.xattrs as usize];
        let (seconds, extra) = Inode::encode_timestamp(
            node.mtime.0.clamp(-(1 << 31), (3 << 32) + (1 << 31) - 1),
            node.mtime.1,
        );
        let kind = kind_of(node);
        let type_bits = MODE_TYPES
            .iter()
            .find(|(k, _)| *k == kind)
            .map_or(0, |(_, bits)| *bits);
        let mut inode = Inode {
            mode: type_bits | (node.mode & 0o7777),
            uid: node.uid,
            gid: node.gid,
            atime: seconds,
            ctime: seconds,
            mtime: seconds,
            crtime: seconds,
            atime_extra: extra,
            ctime_extra: extra,
            mtime_extra: extra,
            crtime_extra: extra,
            links_count: node.links as u16,
            extra_isize: 32,
            file_acl: u64::from(placed.attributes),
            ibody: set.inode_area(),
            ..Inode::default()
        };
        // The blocks of large attributes count as its own, too.
        let of_values = set.large_values();
        let of_values = of_values.map(|value| value.len().div_ceil(BLOCK) as u64);
        let mut blocks = u64::from(placed.attributes != 0) + of_values.sum::<u64>();
        let own_run = [Extent {
            logical: 0,
            start: placed.start,
            length: placed.length,
        }];
        let mut map = |inode: &mut Inode, extents: &[Extent]| {
            inode.flags |= iflags::EXTENTS;
            blocks += extents.iter().map(|e| u64::from(e.length)).sum::<u64>();
            match self.roots.get(&id) {
                Some((root, tree)) => {
                    inode.block = *root;
                    blocks += u64::from(*tree);
                }
                None => inode.block = extents::root(extents),
            }
        };
        match &node.kind {
            Kind::Directory(directory) => {
                let subdirectories = directory
                    .children
                    .values()
                    .filter(|child| self.tree.directory(child.node).is_some())
                    .count() as u32;
                inode.links_count = if subdirectories + 2 > LINK_MAX {
                    1
                } else {
                    (subdirectories + 2) as u16
                };
                inode.size = u64::from(placed.length) * BLOCK as u64;
                if placed.length > 1 {
                    inode.flags |= iflags::INDEX;
                }
                map(&mut inode, &own_run);
            }
            Kind::File { size, extents } => {
                inode.size = *size;
                map(&mut inode, extents.as_slice());
            }
            Kind::Symlink(target) => {
                inode.size = target.len() as u64;
                if placed.length > 0 {
                    map(&mut inode, &own_run);
                } else {
                    inode.block[..target.len()].copy_from_slice(target);
                }
            }
            Kind::Character(major, minor) | Kind::Block(major, minor) => {
                device(&mut inode.block, *major, *minor);
            }
            Kind::Fifo | Kind::Free => {}
        }
        inode.blocks = blocks * (BLOCK as u64 / 512);
        let mut raw = [0; INODE_SIZE];
        inode.encode(&mut raw);
        inode.checksum = csum::inode(self.seed, number, 0, &raw);
        inode.encode(&mut raw);
        raw
    }
}

pub(super) fn reserved_inode(seed: u32, number: u32) -> [u8; INODE_SIZE] {
    let mut raw = [0; INODE_SIZE];
    let checksum = csum::inode(seed, number, 0, &raw);
    raw[0x7c..0x7e].copy_from_slice(&(checksum as u16).to_le_bytes());
    raw
}

/// The inode of an attribute's value: its hash stands where a file has the time of its last reading, and how many
/// refer to it (one does) in the version.
pub(super) fn value_inode(seed: u32, number: u32, value: &Value) -> [u8; INODE_SIZE] {
    let run = [Extent {
        logical: 0,
        start: value.start,
        length: value.size.div_ceil(BLOCK as u32),
    }];
    let mut inode = Inode {
        mode: 0o100_600,
        links_count: 1,
        extra_isize: 32,
        atime: value.hash,
        version: 1,
        size: u64::from(value.size),
        blocks: u64::from(run[0].length) * (BLOCK as u64 / 512),
        flags: iflags::EXTENTS | VALUE,
        block: extents::root(&run),
        ..Inode::default()
    };
    let mut raw = [0; INODE_SIZE];
    inode.encode(&mut raw);
    inode.checksum = csum::inode(seed, number, 0, &raw);
    inode.encode(&mut raw);
    raw
}

/// A directory entry's type byte.
pub(super) fn kind_of(node: &Node) -> u8 {
    match node.kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::Character(..) => 3,
        Kind::Block(..) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
        Kind::Free => 0,
    }
}

/// The kernel's old encoding where it suffices, the new one behind it otherwise.
fn device(block: &mut [u8; 60], major: u32, minor: u32) {
    if major < 256 && minor < 256 {
        block[..4].copy_from_slice(&((major << 8) | minor).to_le_bytes());
    } else {
        let new = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        block[4..8].copy_from_slice(&new.to_le_bytes());
    }
}
