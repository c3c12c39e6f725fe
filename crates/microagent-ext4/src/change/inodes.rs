//! Inodes: made, changed, given back.

use super::{BLOCK, Change, Meta, blocks::empty_tree};
use crate::{
    bytes::{crc32c, put16, put32, u16_at, u32_at},
    error::{Error, Result},
    extent::Extent,
    inode::{CONTENT, FileKind, MIN_SIZE, flags},
};

/// The fields behind the first 128 bytes that are used.
const EXTRA: u16 = 32;

/// The most names a file may have.
const MAX_LINKS: u16 = 65_000;

impl Change {
    /// An inode in use, without names.
    pub(super) fn new_inode(&mut self, kind: FileKind, meta: Meta, near: u32) -> Result<u32> {
        let number = self.groups.take_inode(&self.volume, near)?;
        let mut raw = vec![0; self.volume.superblock().inode_size];
        put16(&mut raw, 0, kind.mode_bits());
        put16(&mut raw, 0x80, EXTRA);
        if matches!(kind, FileKind::File | FileKind::Directory) {
            put32(&mut raw, 0x20, flags::EXTENTS);
            raw[CONTENT].copy_from_slice(&empty_tree());
        }
        let now = self.now;
        put_time(&mut raw, 0x8, 0x8c, now);
        put_time(&mut raw, 0x90, 0x94, now);
        self.inodes.insert(number, raw);
        self.groups.remember_attributes(number, &Vec::new());
        self.write_meta(number, meta)?;
        Ok(number)
    }

    /// The bytes of an inode, to be changed.
    pub(super) fn raw(&mut self, number: u32) -> Result<&mut Vec<u8>> {
        if !self.inodes.contains_key(&number) {
            let raw = self.volume.inode(number)?.raw;
            self.inodes.insert(number, raw);
        }
        self.inodes
            .get_mut(&number)
            .ok_or_else(|| Error::damaged("an inode is not there"))
    }

    pub(super) fn write_meta(&mut self, number: u32, meta: Meta) -> Result<()> {
        let now = self.now;
        let raw = self.raw(number)?;
        let kind = u16_at(raw, 0) & 0xf000;
        put16(raw, 0, kind | meta.mode & 0o7777);
        put16(raw, 0x2, meta.uid as u16);
        put16(raw, 0x78, (meta.uid >> 16) as u16);
        put16(raw, 0x18, meta.gid as u16);
        put16(raw, 0x7a, (meta.gid >> 16) as u16);
        put_time(raw, 0x10, 0x88, meta.mtime);
        put_time(raw, 0xc, 0x84, now);
        Ok(())
    }

    /// Marks something as changed just now.
    pub(super) fn touch(&mut self, number: u32) -> Result<()> {
        let now = self.now;
        let raw = self.raw(number)?;
        put_time(raw, 0x10, 0x88, now);
        put_time(raw, 0xc, 0x84, now);
        Ok(())
    }

    pub(super) fn adjust_links(&mut self, number: u32, step: i16) -> Result<()> {
        let now = self.now;
        let inode = self.inode(number)?;
        let links = inode.links();
        let is_directory = inode.kind() == FileKind::Directory;
        let new = match links.checked_add_signed(step) {
            // A directory with too many to count has one; a new one has none to begin with.
            _ if is_directory && links == 1 && self.groups.fresh_attributes(number).is_none() => 1,
            Some(new) if new <= MAX_LINKS => new,
            Some(_) if is_directory => 1,
            _ => {
                return Err(Error::Impossible {
                    what: format!("a file cannot have more than {MAX_LINKS} names"),
                });
            }
        };
        let raw = self.raw(number)?;
        put16(raw, 0x1a, new);
        put_time(raw, 0xc, 0x84, now);
        Ok(())
    }

    /// Says where a file's content is, and how large it is.
    pub(super) fn set_content(&mut self, number: u32, extents: &[Extent], size: u64) -> Result<()> {
        let (tree, nodes) = self.build_tree(number, extents)?;
        let blocks = nodes + extents.iter().map(|extent| extent.length).sum::<u64>();
        let sectors = blocks * (BLOCK as u64 / 512);
        let attributes = self.inode(number)?.attribute_block();
        let sectors = sectors
            + if attributes == 0 {
                0
            } else {
                BLOCK as u64 / 512
            };
        let raw = self.raw(number)?;
        raw[CONTENT].copy_from_slice(&tree);
        put32(raw, 0x4, size as u32);
        put32(raw, 0x6c, (size >> 32) as u32);
        // A directory written anew has no index.
        let flags = u32_at(raw, 0x20) & !flags::INDEX | flags::EXTENTS;
        put32(raw, 0x20, flags);
        put_sectors(raw, sectors);
        Ok(())
    }

    pub(super) fn set_target(&mut self, number: u32, target: &[u8]) -> Result<()> {
        if target.len() < CONTENT.end - CONTENT.start {
            let raw = self.raw(number)?;
            raw[CONTENT][..target.len()].copy_from_slice(target);
            put32(raw, 0x4, target.len() as u32);
            return Ok(());
        }
        let block = self.groups.take_block(&self.volume)?;
        let mut bytes = vec![0; BLOCK];
        bytes[..target.len()].copy_from_slice(target);
        self.write_new(block, &bytes)?;
        let extent = Extent {
            logical: 0,
            start: block,
            length: 1,
            written: true,
        };
        self.set_content(number, &[extent], target.len() as u64)
    }

    pub(super) fn set_device(&mut self, number: u32, kind: FileKind) {
        let (FileKind::Character(major, minor) | FileKind::Block(major, minor)) = kind else {
            return;
        };
        let Some(raw) = self.inodes.get_mut(&number) else {
            return;
        };
        if major < 256 && minor < 256 {
            put32(raw, CONTENT.start, major << 8 | minor);
        } else {
            let coded = minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12;
            put32(raw, CONTENT.start + 4, coded);
        }
    }

    /// Gives an inode without names back.
    pub(super) fn remove_inode(&mut self, number: u32) -> Result<()> {
        let is_directory = self.inode(number)?.kind() == FileKind::Directory;
        if is_directory {
            self.groups.count_directory(number, -1);
        }
        self.groups.free_inode(&self.volume, number)?;
        let seconds = self.now.0;
        let raw = self.raw(number)?;
        put16(raw, 0x1a, 0);
        put32(raw, 0x14, seconds as u32);
        put32(raw, 0x4, 0);
        put32(raw, 0x6c, 0);
        put_sectors(raw, 0);
        raw[CONTENT].fill(0);
        Ok(())
    }

    /// An inode with its checksum.
    pub(super) fn sealed(&self, number: u32, raw: &[u8]) -> Vec<u8> {
        let mut raw = raw.to_vec();
        put16(&mut raw, 0x7c, 0);
        let wide = u16_at(&raw, 0x80) >= 4 && raw.len() > MIN_SIZE;
        if wide {
            put16(&mut raw, 0x82, 0);
        }
        let generation = u32_at(&raw, 0x64);
        let sum = crc32c(self.inode_seed(number, generation), &raw);
        put16(&mut raw, 0x7c, sum as u16);
        if wide {
            put16(&mut raw, 0x82, (sum >> 16) as u16);
        }
        raw
    }
}

pub(super) fn put_sectors(raw: &mut [u8], sectors: u64) {
    put32(raw, 0x1c, sectors as u32);
    put16(raw, 0x74, (sectors >> 32) as u16);
}

/// A time in its two fields; what they cannot hold is as late or as early as they can.
fn put_time(raw: &mut [u8], at: usize, extra: usize, (seconds, nanos): (i64, u32)) {
    let seconds = seconds.clamp(i64::from(i32::MIN), (3 << 32) + i64::from(i32::MAX));
    put32(raw, at, seconds as u32);
    let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
    if raw.len() > extra && usize::from(u16_at(raw, 0x80)) + MIN_SIZE >= extra + 4 {
        put32(raw, extra, nanos << 2 | epoch);
    }
}
