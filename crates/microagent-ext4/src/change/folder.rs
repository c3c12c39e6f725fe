//! Directories: their entries in memory, and how they are written anew.

use std::collections::BTreeMap;

use super::{BLOCK, Change};
use crate::{
    bytes::{crc32c, put16, put32, u32_at},
    error::{Error, Result},
    extent::{Extent, Map},
    inode::{FileKind, Inode},
    volume::Volume,
};

/// The checksum at the end of a block of entries, dressed up as an entry.
const TAIL: usize = 12;

/// A directory's entries.
#[derive(Debug)]
pub(super) struct Folder {
    parent: u32,
    /// What each name stands for, and the type byte.
    entries: BTreeMap<Vec<u8>, (u32, u8)>,
    changed: bool,
    keeps_time: bool,
}

impl Folder {
    /// An empty directory.
    pub(super) fn new(parent: u32) -> Self {
        Self {
            parent,
            entries: BTreeMap::new(),
            changed: true,
            // Its time is set when it is made.
            keeps_time: true,
        }
    }

    pub(super) fn read(volume: &Volume, inode: &Inode) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for entry in volume.entries(inode)? {
            let kind = volume.inode(entry.inode)?.kind();
            entries.insert(entry.name, (entry.inode, kind.entry_byte()));
        }
        Ok(Self {
            parent: parent(volume, inode)?,
            entries,
            changed: false,
            keeps_time: false,
        })
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<u32> {
        self.entries.get(name).map(|(inode, _)| *inode)
    }

    pub(super) fn put(&mut self, name: &[u8], inode: u32, kind: FileKind) {
        self.entries
            .insert(name.to_vec(), (inode, kind.entry_byte()));
        self.changed = true;
    }

    pub(super) fn keep_time(&mut self) {
        self.keeps_time = true;
    }

    /// The blocks that hold all of it, without their checksums.
    fn blocks(&self, number: u32) -> Vec<Vec<u8>> {
        let room = BLOCK - TAIL;
        let mut blocks = Vec::new();
        let mut block = vec![0; BLOCK];
        let (mut at, mut last) = (0, 0);
        let own: [(&[u8], (u32, u8)); 2] = [(b".", (number, 2)), (b"..", (self.parent, 2))];
        let entries = self.entries.iter().map(|(name, entry)| (&name[..], *entry));
        for (name, (inode, kind)) in own.into_iter().chain(entries) {
            let length = (8 + name.len()).next_multiple_of(4);
            if at + length > room {
                // The last entry of a block reaches to its end.
                put16(&mut block, last + 4, (room - last) as u16);
                blocks.push(std::mem::replace(&mut block, vec![0; BLOCK]));
                at = 0;
            }
            put32(&mut block, at, inode);
            put16(&mut block, at + 4, length as u16);
            block[at + 6] = name.len() as u8;
            block[at + 7] = kind;
            block[at + 8..at + 8 + name.len()].copy_from_slice(name);
            last = at;
            at += length;
        }
        put16(&mut block, last + 4, (room - last) as u16);
        blocks.push(block);
        blocks
    }
}

/// What `..` stands for: the second entry of the first block.
fn parent(volume: &Volume, inode: &Inode) -> Result<u32> {
    let map = Map::read(volume, inode)?;
    let first = map
        .extents
        .first()
        .filter(|extent| extent.logical == 0 && extent.written)
        .ok_or_else(|| Error::damaged(format!("directory {} is empty", inode.number())))?;
    let block = volume.block(first.start)?;
    let is_parent = block[12 + 6] == 2 && &block[12 + 8..12 + 10] == b"..";
    if !is_parent {
        return Err(Error::damaged(format!(
            "directory {} has no parent",
            inode.number()
        )));
    }
    Ok(u32_at(&block, 12))
}

impl Change {
    /// Writes every directory that changed to new blocks.
    pub(super) fn write_folders(&mut self) -> Result<()> {
        let mut numbers: Vec<_> = self
            .folders
            .iter()
            .filter(|(_, folder)| folder.changed)
            .map(|(number, _)| *number)
            .collect();
        numbers.sort_unstable();
        for number in numbers {
            let Some(folder) = self.folders.remove(&number) else {
                continue;
            };
            self.write_folder(number, &folder)?;
        }
        Ok(())
    }

    fn write_folder(&mut self, number: u32, folder: &Folder) -> Result<()> {
        let inode = self.inode(number)?;
        let old = Map::read(&self.volume, &inode)?;
        self.groups.free_map(&old);
        let seed = self.inode_seed(number, inode.generation());
        let mut extents: Vec<Extent> = Vec::new();
        let blocks = folder.blocks(number);
        for (logical, mut block) in (0..).zip(blocks) {
            put16(&mut block, BLOCK - TAIL + 4, TAIL as u16);
            block[BLOCK - TAIL + 7] = 0xde;
            let sum = crc32c(seed, &block[..BLOCK - TAIL]);
            put32(&mut block, BLOCK - 4, sum);
            let place = self.groups.take_block(&self.volume)?;
            self.write_new(place, &block)?;
            match extents.last_mut() {
                Some(last) if last.start + last.length == place => last.length += 1,
                _ => extents.push(Extent {
                    logical,
                    start: place,
                    length: 1,
                    written: true,
                }),
            }
        }
        let count: u64 = extents.iter().map(|extent| extent.length).sum();
        self.set_content(number, &extents, count * BLOCK as u64)?;
        if !folder.keeps_time {
            self.touch(number)?;
        }
        Ok(())
    }
}
