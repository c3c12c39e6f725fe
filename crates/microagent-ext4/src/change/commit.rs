//! The commit: a transaction in the file system's own journal, and then everything to its place.

use std::collections::BTreeMap;

use super::{BLOCK, Change};
use crate::{
    bytes::{be32_at, crc32c, put_be32, put32},
    error::{Error, Result},
    journal::{self, Journal, incompat, kind, tag},
    superblock::{self, Superblock},
    volume::Volume,
};

impl Change {
    /// Makes all of it true at once.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Full`], [`Error::TooLarge`]. Unless the commit itself was cut the
    /// file system then is as it was.
    pub fn commit(mut self) -> Result<()> {
        self.carry_out()
    }

    /// Commits, and tells what was written since the beginning.
    #[cfg(test)]
    pub(super) fn commit_recording(mut self) -> (Vec<crate::volume::Written>, Result<()>) {
        let done = self.carry_out();
        let written = self
            .volume
            .written
            .lock()
            .map_or_else(|_| Vec::new(), |written| written.clone());
        (written, done)
    }

    fn carry_out(&mut self) -> Result<()> {
        self.write_folders()?;
        let mut journaled = std::mem::take(&mut self.shared);
        self.place_inodes(&mut journaled)?;
        self.groups.finish(&self.volume, &mut journaled)?;
        if journaled.is_empty() {
            return Ok(());
        }
        let superblock = self.groups.superblock().clone();
        // Whoever replays it is still at it.
        let block = superblock::OFFSET / BLOCK as u64;
        journaled.insert(block, with_superblock(&self.volume, &superblock, true)?);
        self.volume.sync()?;

        let mut journal = Journal::open(&self.volume)?;
        write_transaction(&self.volume, &journal, &journaled)?;
        self.volume.sync()?;
        // Now it may be there to be replayed, and in one moment it is.
        let flagged = with_superblock(&self.volume, self.volume.superblock(), true)?;
        self.volume.write_block(block, &flagged)?;
        self.volume.sync()?;
        let first = journal.first;
        journal.set_start(first);
        self.volume
            .write_block(journal.blocks[0], &journal.superblock)?;
        self.volume.sync()?;

        for (block, bytes) in &journaled {
            self.volume.write_block(*block, bytes)?;
        }
        self.volume.sync()?;
        let next = journal.sequence.wrapping_add(1);
        close(&self.volume, &mut journal, &superblock, next)
    }

    /// The blocks of the inode tables that change; those that were never used are written at once.
    fn place_inodes(&mut self, journaled: &mut BTreeMap<u64, Vec<u8>>) -> Result<()> {
        let mut fresh: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (number, raw) in std::mem::take(&mut self.inodes) {
            let (block, at) = self.volume.inode_place(number)?;
            let sealed = self.sealed(number, &raw);
            let is_fresh = self.groups.was_unused(&self.volume, number)?;
            let blocks = if is_fresh {
                &mut fresh
            } else {
                &mut *journaled
            };
            let bytes = match blocks.get_mut(&block) {
                Some(bytes) => bytes,
                None => {
                    let bytes = if is_fresh {
                        vec![0; BLOCK]
                    } else {
                        self.volume.block(block)?
                    };
                    blocks.entry(block).or_insert(bytes)
                }
            };
            bytes[at..at + sealed.len()].copy_from_slice(&sealed);
        }
        for (block, bytes) in fresh {
            self.volume.write_block(block, &bytes)?;
        }
        Ok(())
    }
}

/// Puts what the journal holds into its place, and empties it.
pub(super) fn recover(volume: Volume) -> Result<Volume> {
    let mut journal = Journal::open(&volume)?;
    for block in volume.replay().newest.keys() {
        volume.write_block(*block, &volume.block(*block)?)?;
    }
    volume.sync()?;
    let next = volume.replay().next_sequence;
    let superblock = volume.superblock().clone();
    close(&volume, &mut journal, &superblock, next)?;
    volume.reopen()
}

/// Empties the journal, and says so.
fn close(volume: &Volume, journal: &mut Journal, superblock: &Superblock, next: u32) -> Result<()> {
    journal.set_start(0);
    journal.set_sequence(next);
    volume.write_block(journal.blocks[0], &journal.superblock)?;
    volume.sync()?;
    let block = superblock::OFFSET / BLOCK as u64;
    volume.write_block(block, &with_superblock(volume, superblock, false)?)?;
    volume.sync()
}

/// The block of the superblock, with this one in it.
fn with_superblock(volume: &Volume, superblock: &Superblock, recover: bool) -> Result<Vec<u8>> {
    let at = (superblock::OFFSET % BLOCK as u64) as usize;
    let mut block = volume.raw_block(superblock::OFFSET / BLOCK as u64)?;
    let raw = &mut block[at..at + superblock::LENGTH];
    raw.copy_from_slice(&superblock.raw);
    let flag = superblock::incompat::RECOVER;
    let features = superblock.incompat;
    put32(
        raw,
        0x60,
        if recover {
            features | flag
        } else {
            features & !flag
        },
    );
    let sum = crc32c(!0, &raw[..superblock::LENGTH - 4]);
    put32(raw, superblock::LENGTH - 4, sum);
    Ok(block)
}

/// Writes the blocks into an empty journal, from its beginning.
fn write_transaction(
    volume: &Volume,
    journal: &Journal,
    blocks: &BTreeMap<u64, Vec<u8>>,
) -> Result<()> {
    if journal.start != 0 {
        return Err(journal::damaged("it is not empty"));
    }
    let uuid = &journal.superblock[0x30..0x40];
    let seed = crc32c(!0, uuid);
    let is_v3 = journal.has(incompat::CSUM_V3);
    if journal.has(incompat::CSUM_V2) && !is_v3 {
        return Err(Error::unknown("the checksums of old journals"));
    }
    let sequence = journal.sequence;
    let tags = (BLOCK - 12 - 16 - journal.tail_size()) / journal.tag_size();
    let needed = blocks.len() as u64 + (blocks.len() as u64).div_ceil(tags as u64) + 1;
    let room = u64::from(journal.length - journal.first);
    if needed > room {
        return Err(Error::TooLarge {
            blocks: needed,
            most: room,
        });
    }
    let mut place = journal.first as usize;
    let mut put = |bytes: &[u8]| {
        let written = volume.write_block(journal.blocks[place], bytes);
        place += 1;
        written
    };
    let header = |kind: u32| {
        let mut block = vec![0; BLOCK];
        put_be32(&mut block, 0, journal::MAGIC);
        put_be32(&mut block, 4, kind);
        put_be32(&mut block, 8, sequence);
        block
    };
    let all: Vec<_> = blocks.iter().collect();
    for chunk in all.chunks(tags) {
        let mut descriptor = header(kind::DESCRIPTOR);
        let mut contents = Vec::with_capacity(chunk.len());
        let mut at = 12;
        for (index, (target, bytes)) in chunk.iter().enumerate() {
            let mut bytes = (*bytes).clone();
            let mut flags = 0;
            if be32_at(&bytes, 0) == journal::MAGIC {
                // It must not look like the journal's own.
                put_be32(&mut bytes, 0, 0);
                flags |= tag::ESCAPED;
            }
            if index > 0 {
                flags |= tag::SAME_UUID;
            }
            if index + 1 == chunk.len() {
                flags |= tag::LAST;
            }
            put_be32(&mut descriptor, at, **target as u32);
            put_be32(&mut descriptor, at + 4, flags);
            if journal.has(incompat::WIDE) {
                put_be32(&mut descriptor, at + 8, (**target >> 32) as u32);
            }
            if is_v3 {
                let sum = crc32c(crc32c(seed, &sequence.to_be_bytes()), &bytes);
                put_be32(&mut descriptor, at + 12, sum);
            }
            at += journal.tag_size();
            if index == 0 {
                descriptor[at..at + 16].copy_from_slice(uuid);
                at += 16;
            }
            contents.push(bytes);
        }
        if is_v3 {
            let sum = crc32c(seed, &descriptor);
            put_be32(&mut descriptor, BLOCK - 4, sum);
        }
        put(&descriptor)?;
        for bytes in contents {
            put(&bytes)?;
        }
    }
    volume.sync()?;
    let mut commit = header(kind::COMMIT);
    if is_v3 {
        let sum = crc32c(seed, &commit);
        put_be32(&mut commit, 16, sum);
    }
    put(&commit)
}
