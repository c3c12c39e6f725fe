//! Writes a merged tree as an ext4 file system behind content that is already in place.
//!
//! Block 0 and the group descriptors' reserve come first, then the content as it streamed in, then directories, long
//! symlinks, attribute blocks and extent trees, then all bitmaps and inode tables (`flex_bg` lets them lie anywhere),
//! and nothing else: no backup superblocks (`sparse_super2` without any), and a journal and a free tail only where
//! the disk is to be written to ([`Headroom`]). Checksummed (`metadata_csum`), large directories hashed. It knows
//! blocks and inodes, nothing of layers or archives.
//!
//! Structures and checksums are encoded by `mkext4`; its own builder is not used here because it wants every size
//! before the first byte (so content would be written twice), always adds a journal, and cannot hold byte names.
//! Format: the kernel's `Documentation/filesystems/ext4`.

mod directory;
mod extents;
mod geometry;
mod inode;
mod journal;

use std::collections::HashMap;
use std::io;

use mkext4::csum;
use mkext4::dirhash::seed_from_uuid;
use mkext4::spec::{GroupDesc, Superblock, bg_flags};

use self::geometry::{Bitmaps, Geometry, inode_bitmap};
use self::inode::{kind_of, reserved_inode, value_inode};
use super::content::{Appender, BLOCK, Extent};
use super::tree::{Kind, NodeId, ROOT, Tree};
use super::xattr::value_hash;

/// Blocks kept behind block 0 for group descriptors: 8192 groups, 256 GiB.
pub(crate) const DESCRIPTOR_BLOCKS: u32 = 128;
const DESCRIPTOR: usize = 32;
/// The most groups.
const MAX_GROUPS: u32 = DESCRIPTOR_BLOCKS * (BLOCK / DESCRIPTOR) as u32;
/// Where content begins.
pub(crate) const FIRST_CONTENT_BLOCK: u32 = 1 + DESCRIPTOR_BLOCKS;
/// The largest disk the descriptors describe.
pub(crate) const MAX_DISK_BYTES: u64 = MAX_GROUPS as u64 * GROUP_BLOCKS as u64 * BLOCK as u64;

/// As many as a block of a bitmap has bits.
const GROUP_BLOCKS: u32 = 8 * BLOCK as u32;
const INODE_SIZE: usize = 256;
const INODES_PER_BLOCK: u32 = (BLOCK / INODE_SIZE) as u32;
const ROOT_INODE: u32 = 2;
const FIRST_INODE: u32 = 11;
const SPARSE_SUPER2: u32 = 0x200;
const EA_INODE: u32 = 0x400;
/// What a superblock says of the block size: the power of two above 1024.
const LOG_BLOCK: u32 = BLOCK.ilog2() - 10;
/// Identity of the file system; all of it is input, so equal input gives equal bytes.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    pub(crate) label: [u8; 16],
}

/// Room on a disk that is to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headroom {
    /// Free bytes, beside those of a journal.
    pub bytes: u64,
    /// Free inodes.
    pub inodes: u32,
}

/// What a disk that is to be written to is like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Room {
    /// It has so much room beside its content.
    Free(Headroom),
    /// It is so many bytes large.
    Total(u64),
}

/// Why the file system could not be laid out.
pub(crate) enum LayoutError {
    Output(io::Error),
    Full,
    Impossible(String),
}

impl From<io::Error> for LayoutError {
    fn from(error: io::Error) -> Self {
        LayoutError::Output(error)
    }
}

/// What [`write()`] made.
pub(crate) struct Written {
    /// Blocks of the whole disk.
    pub(crate) blocks: u32,
    pub(crate) inodes: u32,
}

/// Where one inode's own blocks are.
#[derive(Debug, Clone, Copy, Default)]
struct Placed {
    attributes: u32,
    /// First block and number of blocks of a directory or a long symlink.
    start: u32,
    length: u32,
}

/// A value of an attribute that has an inode of its own.
#[derive(Debug, Clone, Copy)]
struct Value {
    start: u32,
    size: u32,
    hash: u32,
}

/// Writes everything but content; content must have been appended through the same appender.
pub(crate) fn write(
    tree: &mut Tree<'_>,
    appender: &mut Appender<'_>,
    identity: &Identity,
    room: Option<Room>,
) -> Result<Written, LayoutError> {
    let order = number_inodes(tree)?;
    let mut writer = Writer {
        seed: csum::fs_seed(&identity.uuid),
        hash_seed: seed_from_uuid(&identity.uuid),
        identity,
        tree,
        appender,
        numbers: order.numbers,
        placed: Vec::new(),
        values: Vec::new(),
        roots: HashMap::new(),
        order: order.order,
        room,
        journal: None,
    };
    writer.place_blocks()?;
    writer.place_journal()?;
    writer.finish()
}

struct Order {
    /// Node of each inode, from inode 11 on (the root, inode 2, apart).
    order: Vec<NodeId>,
    /// Inode of each node.
    numbers: Vec<u32>,
}

/// Breadth first, names sorted: a directory's inodes lie together.
fn number_inodes(tree: &Tree<'_>) -> Result<Order, LayoutError> {
    let mut numbers = vec![0u32; tree.nodes.len()];
    let mut order: Vec<NodeId> = Vec::with_capacity(tree.nodes.len());
    numbers[ROOT as usize] = ROOT_INODE;
    let mut next = FIRST_INODE;
    let mut visited = 0;
    let mut current = ROOT;
    loop {
        if let Some(directory) = tree.directory(current) {
            for child in directory.children.values() {
                if numbers[child.node as usize] == 0 {
                    numbers[child.node as usize] = next;
                    next = next
                        .checked_add(1)
                        .ok_or_else(|| LayoutError::Impossible("too many inodes".to_owned()))?;
                    order.push(child.node);
                }
            }
        }
        match order.get(visited) {
            Some(node) => current = *node,
            None => return Ok(Order { order, numbers }),
        }
        visited += 1;
    }
}

struct Writer<'a, 't, 'o> {
    seed: u32,
    hash_seed: [u32; 4],
    identity: &'a Identity,
    tree: &'a mut Tree<'t>,
    appender: &'a mut Appender<'o>,
    order: Vec<NodeId>,
    numbers: Vec<u32>,
    /// By position in `order`, the root at the end.
    placed: Vec<Placed>,
    /// Their inodes come behind those of nodes.
    values: Vec<Value>,
    /// Extent roots of the few inodes that need a tree, and the tree's blocks.
    roots: HashMap<NodeId, ([u8; 60], u32)>,
    room: Option<Room>,
    /// The journal's first block.
    journal: Option<u32>,
}

impl Writer<'_, '_, '_> {
    fn append(&mut self, blocks: &[u8]) -> Result<u32, LayoutError> {
        let start = self.appender.next_block();
        if self.appender.append(blocks)? {
            Ok(start)
        } else {
            Err(LayoutError::Full)
        }
    }

    fn place_blocks(&mut self) -> Result<(), LayoutError> {
        self.placed.reserve_exact(self.order.len() + 1);
        for index in 0..=self.order.len() {
            let id = self.order.get(index).copied().unwrap_or(ROOT);
            let placed = self.place(id)?;
            self.placed.push(placed);
        }
        Ok(())
    }

    /// Where there is something to write, there is a journal. Its blocks are zeros, which the file has already.
    fn place_journal(&mut self) -> Result<(), LayoutError> {
        if self.room.is_none() {
            return Ok(());
        }
        self.journal = Some(self.append(&journal::first_block())?);
        self.skip(journal::BLOCKS - 1)
    }

    /// The inode that the next large value gets.
    fn next_value(&self) -> u32 {
        FIRST_INODE + (self.order.len() + self.values.len()) as u32
    }

    fn skip(&mut self, blocks: u32) -> Result<(), LayoutError> {
        if self.appender.skip(blocks)? {
            Ok(())
        } else {
            Err(LayoutError::Full)
        }
    }

    fn place(&mut self, id: NodeId) -> Result<Placed, LayoutError> {
        let mut placed = Placed::default();
        let number = self.numbers[id as usize];
        let set = self.tree.nodes[id as usize].xattrs as usize;
        let first_value = self.next_value();
        let mut values = Vec::new();
        for value in self.tree.xattrs[set].large_values() {
            let size = value.len();
            let mut blocks = value.to_vec();
            blocks.resize(size.next_multiple_of(BLOCK), 0);
            values.push((blocks, size as u32, value_hash(self.seed, value)));
        }
        for (blocks, size, hash) in values {
            let start = self.append(&blocks)?;
            self.values.push(Value { start, size, hash });
        }
        let set = &self.tree.xattrs[set];
        if set.needs_block() {
            let block = set.block(self.seed, self.appender.next_block(), first_value);
            placed.attributes = self.append(&block)?;
        }
        match &self.tree.nodes[id as usize].kind {
            Kind::Directory(directory) => {
                let entries: Vec<directory::Entry<'_>> = directory
                    .children
                    .iter()
                    .map(|(name, child)| directory::Entry {
                        name,
                        inode: self.numbers[child.node as usize],
                        kind: kind_of(&self.tree.nodes[child.node as usize]),
                    })
                    .collect();
                let parent = self.numbers[directory.parent as usize];
                let blocks = directory::render(number, parent, &entries, self.hash_seed, self.seed)
                    .ok_or_else(|| {
                        LayoutError::Impossible("a directory has too many entries".to_owned())
                    })?;
                drop(entries);
                placed.length = (blocks.len() / BLOCK) as u32;
                placed.start = self.append(&blocks)?;
                let run = [Extent {
                    logical: 0,
                    start: placed.start,
                    length: placed.length,
                }];
                self.place_extents(id, number, &run)?;
            }
            Kind::Symlink(target) if target.len() >= 60 => {
                let mut block = vec![0; BLOCK];
                block[..target.len()].copy_from_slice(target);
                placed.length = 1;
                placed.start = self.append(&block)?;
            }
            Kind::File { extents, .. } => {
                // Cloned only where there is more than one run.
                let extents = extents.clone();
                self.place_extents(id, number, extents.as_slice())?;
            }
            _ => {}
        }
        Ok(placed)
    }

    /// Writes an extent tree where the inode's own four extents are too few.
    fn place_extents(
        &mut self,
        id: NodeId,
        number: u32,
        extents: &[Extent],
    ) -> Result<(), LayoutError> {
        if extents::fits_inode(extents) {
            return Ok(());
        }
        let checksum_seed = csum::inode_seed(self.seed, number, 0);
        let first = self.appender.next_block();
        let (blocks, root) = extents::tree(extents, checksum_seed, first)
            .ok_or_else(|| LayoutError::Impossible("a file has too many holes".to_owned()))?;
        self.append(&blocks)?;
        self.roots.insert(id, (root, (blocks.len() / BLOCK) as u32));
        Ok(())
    }

    fn geometry(&self, used_inodes: u32) -> Result<Geometry, LayoutError> {
        let end = self.appender.next_block();
        let too_large =
            || LayoutError::Impossible("the disk would be larger than 256 GiB".to_owned());
        match self.room {
            None => Geometry::new(end, used_inodes, None).ok_or_else(too_large),
            Some(Room::Free(headroom)) => {
                Geometry::new(end, used_inodes, Some(headroom)).ok_or_else(too_large)
            }
            Some(Room::Total(bytes)) => {
                Geometry::of_size(end, used_inodes, bytes).map_err(|needed| match needed {
                    None => too_large(),
                    Some(blocks) => LayoutError::Impossible(format!(
                        "a disk of {} MiB is too small for it: its content and the file system's own blocks need {} MiB",
                        bytes >> 20,
                        (u64::from(blocks) * BLOCK as u64).div_ceil(1 << 20)
                    )),
                })
            }
        }
    }

    fn finish(mut self) -> Result<Written, LayoutError> {
        let used_inodes = self.next_value() - 1;
        let geometry = self.geometry(used_inodes)?;
        let content_end = self.appender.next_block();
        let bitmaps = Bitmaps {
            used_end: geometry.metadata_end,
            descriptor_blocks: geometry.descriptor_blocks(),
        };
        self.tree.freed.sort_unstable();
        let mut descriptors = Vec::with_capacity(geometry.groups as usize);
        let mut free_blocks = 0u64;
        for group in 0..geometry.groups {
            let (bitmap, free) = bitmaps.render(&geometry, group, &self.tree.freed);
            self.append(&bitmap)?;
            free_blocks += u64::from(free);
            descriptors.push(GroupDesc {
                block_bitmap: u64::from(content_end + group),
                inode_bitmap: u64::from(content_end + geometry.groups + group),
                inode_table: u64::from(
                    content_end + 2 * geometry.groups + group * geometry.table_blocks(),
                ),
                free_blocks_count: free,
                block_bitmap_csum: u32::from(csum::block_bitmap(self.seed, &bitmap)),
                ..GroupDesc::default()
            });
        }
        for (group, descriptor) in descriptors.iter_mut().enumerate() {
            let first = group as u32 * geometry.group_inodes;
            let used = used_inodes.saturating_sub(first).min(geometry.group_inodes);
            let bitmap = inode_bitmap(used, geometry.group_inodes);
            self.append(&bitmap)?;
            descriptor.free_inodes_count = geometry.group_inodes - used;
            descriptor.itable_unused = geometry.group_inodes - used;
            descriptor.flags = bg_flags::INODE_ZEROED;
            if used == 0 {
                descriptor.flags |= bg_flags::INODE_UNINIT;
            } else {
                descriptor.inode_bitmap_csum = u32::from(csum::inode_bitmap(
                    self.seed,
                    &bitmap,
                    geometry.group_inodes,
                ));
            }
        }
        self.inode_tables(&geometry, &mut descriptors)?;
        self.appender.flush()?;
        self.superblock(&geometry, &descriptors, free_blocks, used_inodes)?;
        Ok(Written {
            blocks: geometry.blocks,
            inodes: used_inodes,
        })
    }

    fn inode_tables(
        &mut self,
        geometry: &Geometry,
        descriptors: &mut [GroupDesc],
    ) -> Result<(), LayoutError> {
        let total = geometry.groups * geometry.group_inodes;
        let mut block = Vec::with_capacity(BLOCK);
        for number in 1..=total {
            let raw = match number {
                ROOT_INODE => self.inode(ROOT, self.order.len()),
                journal::INODE if self.journal.is_some() => {
                    journal::inode(self.seed, self.journal.unwrap_or_default())
                }
                1..FIRST_INODE => reserved_inode(self.seed, number),
                _ => {
                    let index = (number - FIRST_INODE) as usize;
                    let value = index.checked_sub(self.order.len());
                    match (self.order.get(index), value.map(|at| self.values.get(at))) {
                        (Some(id), _) => self.inode(*id, index),
                        (None, Some(Some(value))) => value_inode(self.seed, number, value),
                        (None, _) => [0; INODE_SIZE],
                    }
                }
            };
            if raw[1] & 0xf0 == 0x40 {
                descriptors[((number - 1) / geometry.group_inodes) as usize].used_dirs_count += 1;
            }
            block.extend_from_slice(&raw);
            if block.len() == BLOCK {
                // Only headroom has whole blocks of inodes that are free.
                if self.room.is_some() && block.iter().all(|byte| *byte == 0) {
                    self.skip(1)?;
                } else {
                    self.append(&block)?;
                }
                block.clear();
            }
        }
        Ok(())
    }

    fn superblock(
        &mut self,
        geometry: &Geometry,
        descriptors: &[GroupDesc],
        free_blocks: u64,
        used_inodes: u32,
    ) -> Result<(), LayoutError> {
        let mut front = vec![0u8; (1 + geometry.descriptor_blocks()) as usize * BLOCK];
        for (group, descriptor) in descriptors.iter().enumerate() {
            let mut raw = [0; 32];
            descriptor.encode32(&mut raw);
            let checksum = csum::group_desc(self.seed, group as u32, &raw);
            raw[30..].copy_from_slice(&checksum.to_le_bytes());
            let at = BLOCK + group * DESCRIPTOR;
            front[at..at + DESCRIPTOR].copy_from_slice(&raw);
        }
        let mut superblock = Superblock {
            inodes_count: geometry.groups * geometry.group_inodes,
            blocks_count: u64::from(geometry.blocks),
            r_blocks_count: 0,
            free_blocks_count: free_blocks,
            free_inodes_count: geometry.groups * geometry.group_inodes - used_inodes,
            first_data_block: 0,
            log_block_size: LOG_BLOCK,
            log_cluster_size: LOG_BLOCK,
            blocks_per_group: GROUP_BLOCKS,
            clusters_per_group: GROUP_BLOCKS,
            inodes_per_group: geometry.group_inodes,
            mtime: 0,
            wtime: 0,
            mnt_count: 0,
            max_mnt_count: 0xffff,
            state: 1,
            errors: 1,
            minor_rev_level: 0,
            lastcheck: 0,
            checkinterval: 0,
            creator_os: 0,
            rev_level: 1,
            def_resuid: 0,
            def_resgid: 0,
            first_ino: FIRST_INODE,
            inode_size: INODE_SIZE as u16,
            block_group_nr: 0,
            feature_compat: mkext4::spec::compat::EXT_ATTR
                | mkext4::spec::compat::DIR_INDEX
                | SPARSE_SUPER2
                | self
                    .journal
                    .map_or(0, |_| mkext4::spec::compat::HAS_JOURNAL),
            feature_incompat: mkext4::spec::incompat::WRITER
                | (if self.values.is_empty() { 0 } else { EA_INODE }),
            feature_ro_compat: mkext4::spec::ro_compat::WRITER
                & !mkext4::spec::ro_compat::SPARSE_SUPER,
            uuid: self.identity.uuid,
            volume_name: self.identity.label,
            last_mounted: [0; 64],
            reserved_gdt_blocks: 0,
            journal_uuid: [0; 16],
            journal_inum: self.journal.map_or(0, |_| journal::INODE),
            journal_dev: 0,
            last_orphan: 0,
            hash_seed: self.hash_seed,
            def_hash_version: 1,
            jnl_backup_type: u8::from(self.journal.is_some()),
            desc_size: 0,
            default_mount_opts: 0x0c,
            first_meta_bg: 0,
            mkfs_time: 0,
            jnl_blocks: self.journal.map_or([0; 17], journal::backup),
            min_extra_isize: 32,
            want_extra_isize: 32,
            // Names are hashed as signed bytes, whatever the guest's architecture.
            flags: 1,
            log_groups_per_flex: 4,
            checksum_type: 1,
            kbytes_written: 0,
            overhead_clusters: 0,
            lpf_ino: 0,
            checksum_seed: 0,
            checksum: 0,
        };
        superblock.encode(&mut front[1024..2048]);
        superblock.checksum = csum::superblock(&front[1024..2048]);
        superblock.encode(&mut front[1024..2048]);
        self.appender.write_at(0, &front)?;
        Ok(())
    }
}
