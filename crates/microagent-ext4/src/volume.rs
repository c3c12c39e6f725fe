//! An ext4 file system in a file, read without changing it: as it would be if it were mounted,
//! the journal's blocks included.
//!
//! Who wrote it may mean harm: every number is checked before it is used, and memory is bounded.

use std::{fs::File, io};

use microagent_disk::JoinedFile;
use microagent_host::fs::Positioned;

use crate::{
    attributes::{self, Attributes},
    bytes::{put_be32, u32_at, wide},
    directory::{self, DirEntry},
    error::{Doing, Error, Result},
    extent::Map,
    inode::{FileKind, Inode},
    journal::{self, Journal, Replay},
    superblock::{self, Superblock},
};

/// The longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;

/// A write to a place, or a sync.
#[cfg(test)]
pub(crate) type Written = Option<(u64, Vec<u8>)>;

/// Where the blocks are.
#[derive(Debug)]
enum Storage {
    One(File),
    /// Only ever read.
    Joined(JoinedFile),
}

impl Storage {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::One(file) => file.read_exact_at(buffer, offset),
            Self::Joined(joined) => joined.read_exact_at(buffer, offset),
        }
    }

    fn length(&self) -> io::Result<u64> {
        match self {
            Self::One(file) => Ok(file.metadata()?.len()),
            Self::Joined(joined) => Ok(joined.size_bytes()),
        }
    }

    fn writable(&self) -> io::Result<&File> {
        match self {
            Self::One(file) => Ok(file),
            Self::Joined(_) => Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "its files are shared with other disks",
            )),
        }
    }
}

/// A file system that is not in use.
#[derive(Debug)]
pub struct Volume {
    file: Storage,
    superblock: Superblock,
    replay: Replay,
    /// Everything written, for tests that cut it anywhere.
    #[cfg(test)]
    pub(crate) written: std::sync::Mutex<Vec<Written>>,
}

impl Volume {
    /// Opens the file system in `file`, which nobody may write to meanwhile.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Unknown`].
    pub fn open(file: File) -> Result<Self> {
        Self::open_storage(Storage::One(file))
    }

    /// Opens a file system whose blocks are in several files, to read it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_joined(joined: JoinedFile) -> Result<Self> {
        Self::open_storage(Storage::Joined(joined))
    }

    fn open_storage(file: Storage) -> Result<Self> {
        let mut raw = [0; superblock::LENGTH];
        file.read_exact_at(&mut raw, superblock::OFFSET)
            .doing("read the superblock of")?;
        let superblock = Superblock::parse(raw)?;
        let length = file.length().doing("look at")?;
        if superblock.blocks > length / superblock.block_size as u64 {
            return Err(Error::damaged("it is larger than its disk"));
        }
        let mut volume = Self {
            file,
            superblock,
            replay: Replay::default(),
            #[cfg(test)]
            written: std::sync::Mutex::default(),
        };
        if volume.superblock.needs_recovery() {
            let journal = Journal::open(&volume)?;
            volume.replay = journal.replay(&volume)?;
            volume.reread()?;
        }
        Ok(volume)
    }

    /// The superblock may be among what the journal holds.
    fn reread(&mut self) -> Result<()> {
        let size = self.superblock.block_size as u64;
        let block = superblock::OFFSET / size;
        if self.replay.newest.contains_key(&block) {
            let at = (superblock::OFFSET % size) as usize;
            let block = self.block(block)?;
            let mut raw = [0; superblock::LENGTH];
            raw.copy_from_slice(&block[at..at + superblock::LENGTH]);
            let newer = Superblock::parse(raw)?;
            let same = newer.blocks == self.superblock.blocks
                && newer.block_size == self.superblock.block_size
                && newer.inodes == self.superblock.inodes;
            if !same {
                return Err(journal::damaged("it changes the size of the file system"));
            }
            self.superblock = newer;
        }
        Ok(())
    }

    /// The size of the file system in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.superblock.blocks * self.superblock.block_size as u64
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Opens it again, after what its journal held was put in its place.
    pub(crate) fn reopen(self) -> Result<Self> {
        Self::open_storage(self.file)
    }

    /// Writes whole blocks in a row.
    pub(crate) fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let size = self.superblock.block_size;
        let count = (bytes.len() / size) as u64;
        if block == 0 && count > 1 || block.saturating_add(count) > self.superblock.blocks {
            return Err(Error::damaged(format!(
                "block {block} cannot be written: it is beyond its end"
            )));
        }
        #[cfg(test)]
        self.record(Some((block * size as u64, bytes.to_vec())));
        self.file
            .writable()
            .and_then(|file| file.write_all_at(bytes, block * size as u64))
            .doing("write to")
    }

    /// Waits until everything that was written is on stable storage.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        self.record(None);
        self.file.writable().and_then(File::sync_data).doing("sync")
    }

    pub(crate) fn replay(&self) -> &Replay {
        &self.replay
    }

    #[cfg(test)]
    fn record(&self, write: Written) {
        if let Ok(mut written) = self.written.lock() {
            written.push(write);
        }
    }

    /// A block as the disk has it, whatever the journal says.
    pub(crate) fn raw_block(&self, block: u64) -> Result<Vec<u8>> {
        if block >= self.superblock.blocks {
            return Err(Error::damaged(format!(
                "it refers to block {block}, beyond its end"
            )));
        }
        let mut bytes = vec![0; self.superblock.block_size];
        self.file
            .read_exact_at(&mut bytes, block * self.superblock.block_size as u64)
            .doing("read")?;
        Ok(bytes)
    }

    /// The newest version of a block.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>> {
        let Some(copy) = self.replay.newest.get(&block) else {
            return self.raw_block(block);
        };
        let mut bytes = self.raw_block(copy.block)?;
        if copy.escaped {
            put_be32(&mut bytes, 0, journal::MAGIC);
        }
        Ok(bytes)
    }

    /// The newest version of a run of blocks, from the byte `within` the first on.
    fn bytes(&self, start: u64, within: u64, mut buffer: &mut [u8]) -> Result<()> {
        let size = self.superblock.block_size as u64;
        if self.replay.newest.is_empty() {
            let at = start * size + within;
            return self.file.read_exact_at(buffer, at).doing("read");
        }
        // Content, too, may have gone through the journal.
        let (mut block, mut within) = (start, within as usize);
        while !buffer.is_empty() {
            let bytes = self.block(block)?;
            let count = buffer.len().min(bytes.len() - within);
            let (piece, rest) = buffer.split_at_mut(count);
            piece.copy_from_slice(&bytes[within..within + count]);
            (block, within, buffer) = (block + 1, 0, rest);
        }
        Ok(())
    }

    /// A group's descriptor.
    pub(crate) fn descriptor(&self, group: u32) -> Result<Vec<u8>> {
        let size = self.superblock.desc_size;
        let (block, at) = self.descriptor_place(group);
        Ok(self.block(block)?[at..at + size].to_vec())
    }

    /// The block that a group's descriptor is in, and where in it.
    pub(crate) fn descriptor_place(&self, group: u32) -> (u64, usize) {
        let superblock = &self.superblock;
        let per_block = superblock.block_size / superblock.desc_size;
        let group = group as usize;
        let block = superblock.first_data_block + 1 + (group / per_block) as u64;
        (block, group % per_block * superblock.desc_size)
    }

    /// The block that an inode is in, and where in it.
    pub(crate) fn inode_place(&self, number: u32) -> Result<(u64, usize)> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(Error::damaged(format!(
                "it refers to inode {number}, which cannot be"
            )));
        }
        let index = number - 1;
        let descriptor = self.descriptor(index / superblock.inodes_per_group)?;
        let table = table(&descriptor);
        let offset = (index % superblock.inodes_per_group) as usize * superblock.inode_size;
        Ok((
            table.saturating_add((offset / superblock.block_size) as u64),
            offset % superblock.block_size,
        ))
    }

    /// An inode that is in use.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no such inode.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        Inode::parse(number, self.raw_inode(number)?)
    }

    /// The inode that holds the value of an attribute.
    pub(crate) fn value_inode(&self, number: u32) -> Result<Inode> {
        Inode::parse_value(number, self.raw_inode(number)?)
    }

    fn raw_inode(&self, number: u32) -> Result<Vec<u8>> {
        let (block, at) = self.inode_place(number)?;
        let block = self.block(block)?;
        Ok(block[at..at + self.superblock.inode_size].to_vec())
    }

    /// The names in a directory, in the disk's order.
    ///
    /// # Errors
    /// [`Error::Damaged`], also if it is no directory.
    pub fn entries(&self, folder: &Inode) -> Result<Vec<DirEntry>> {
        let number = folder.number();
        if folder.kind() != FileKind::Directory {
            return Err(Error::damaged(format!("inode {number} is no directory")));
        }
        let size = self.superblock.block_size as u64;
        let mut entries = Vec::new();
        let mut left = self.superblock.blocks;
        for extent in Map::read(self, folder)?.extents {
            for index in 0..extent.length {
                if (extent.logical + index) * size < folder.size() {
                    // One block may be there many times, but not more blocks than there are.
                    let Some(rest) = left.checked_sub(1) else {
                        return Err(Error::damaged(format!("directory {number} is too large")));
                    };
                    left = rest;
                    let block = self.block(extent.start + index)?;
                    directory::read_block(&block, number, &mut entries)?;
                }
            }
        }
        Ok(entries)
    }

    /// What a name in a directory stands for.
    ///
    /// # Errors
    /// As [`Self::entries`].
    pub fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<Option<Inode>> {
        let entries = self.entries(folder)?;
        let entry = entries.iter().find(|entry| entry.name == name);
        entry.map(|entry| self.inode(entry.inode)).transpose()
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// [`Error::Damaged`], also if it is no link.
    pub fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        if let Some(target) = link.short_target() {
            return Ok(target.to_vec());
        }
        if link.kind() != FileKind::Symlink || link.size() > MAX_TARGET {
            return Err(Error::damaged(format!(
                "inode {} is no symbolic link",
                link.number()
            )));
        }
        let mut target = vec![0; link.size() as usize];
        self.content(link)?.read_at(0, &mut target)?;
        Ok(target)
    }

    /// The extended attributes of a file.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        attributes::read(self, inode)
    }

    /// The content of a file.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn content(&self, inode: &Inode) -> Result<Content<'_>> {
        Ok(Content {
            volume: self,
            map: Map::read(self, inode)?,
            size: inode.size(),
        })
    }
}

/// Where a group's inodes are.
pub(crate) fn table(descriptor: &[u8]) -> u64 {
    wide(u32_at(descriptor, 0x8), u32_at(descriptor, 0x28))
}

/// A file's content.
#[derive(Debug)]
pub struct Content<'v> {
    volume: &'v Volume,
    map: Map,
    size: u64,
}

impl Content<'_> {
    /// Where there is data: offsets and lengths, in order. The rest are holes.
    #[must_use]
    pub fn segments(&self) -> Vec<(u64, u64)> {
        let block = self.volume.superblock.block_size as u64;
        let mut segments: Vec<(u64, u64)> = Vec::new();
        for extent in self.map.extents.iter().filter(|extent| extent.written) {
            let start = extent.logical * block;
            let end = (start + extent.length * block).min(self.size);
            if start >= end {
                continue;
            }
            match segments.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += end - start,
                _ => segments.push((start, end - start)),
            }
        }
        segments
    }

    /// Fills `buffer` with what is at `offset`; beyond the end are zeros.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let block = self.volume.superblock.block_size as u64;
        let (mut offset, mut left) = (offset, buffer);
        while !left.is_empty() {
            let logical = offset / block;
            let within = offset % block;
            let index = self
                .map
                .extents
                .partition_point(|extent| extent.logical + extent.length <= logical);
            let extent = self.map.extents.get(index);
            let until = match extent {
                Some(extent) if extent.logical <= logical => extent.logical + extent.length,
                Some(extent) => extent.logical,
                None => u64::MAX / block,
            };
            let room = (until - logical).saturating_mul(block) - within;
            let count = left.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (piece, rest) = left.split_at_mut(count);
            match extent {
                Some(extent) if extent.logical <= logical && extent.written => {
                    let start = extent.start + logical - extent.logical;
                    self.volume.bytes(start, within, piece)?;
                }
                _ => piece.fill(0),
            }
            offset += count as u64;
            left = rest;
        }
        Ok(())
    }
}
