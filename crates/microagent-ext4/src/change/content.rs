//! New files: their content goes to free blocks as it comes.

use super::{BLOCK, Change, Meta};
use crate::{
    error::{Error, Result},
    extent::Extent,
    inode::FileKind,
};

/// How much is gathered before it is written.
const GATHER: usize = 1 << 20;

/// A file being made. It has no name until it is linked, and none of it is there until the commit.
#[derive(Debug)]
pub struct NewFile {
    number: u32,
    extents: Vec<Extent>,
    /// Content that has no place yet, from the block `logical` on.
    buffer: Vec<u8>,
    logical: u64,
}

impl Change {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn make_file(&mut self, meta: Meta, near: u32) -> Result<NewFile> {
        Ok(NewFile {
            number: self.new_inode(FileKind::File, meta, near)?,
            extents: Vec::new(),
            buffer: Vec::new(),
            logical: 0,
        })
    }
}

impl NewFile {
    /// Adds bytes at its end.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Io`].
    pub fn write(&mut self, change: &mut Change, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(GATHER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.buffer.len() == GATHER {
                self.flush(change)?;
            }
        }
        Ok(())
    }

    /// Adds zeros at its end, whole blocks of which take no place.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn hole(&mut self, change: &mut Change, mut length: u64) -> Result<()> {
        let within = self.buffer.len() % BLOCK;
        if within > 0 {
            let rest = length.min((BLOCK - within) as u64);
            self.buffer.resize(self.buffer.len() + rest as usize, 0);
            length -= rest;
        }
        if length == 0 {
            return Ok(());
        }
        self.flush(change)?;
        self.logical = self
            .logical
            .checked_add(length / BLOCK as u64)
            .filter(|logical| u32::try_from(*logical).is_ok())
            .ok_or_else(|| Error::Impossible {
                what: "a file cannot be larger than 16 TiB".to_owned(),
            })?;
        self.buffer.resize((length % BLOCK as u64) as usize, 0);
        Ok(())
    }

    /// Ends the file; gives its inode.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(mut self, change: &mut Change) -> Result<u32> {
        let size = self.logical * BLOCK as u64 + self.buffer.len() as u64;
        self.flush(change)?;
        change.set_content(self.number, &self.extents, size)?;
        Ok(self.number)
    }

    fn flush(&mut self, change: &mut Change) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(buffer.len().next_multiple_of(BLOCK), 0);
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let want = (rest.len() / BLOCK) as u64;
            let (start, length) = change.groups.take_blocks(&change.volume, want)?;
            let (piece, left) = rest.split_at(length as usize * BLOCK);
            change.volume.write_block(start, piece)?;
            match self.extents.last_mut() {
                Some(last)
                    if last.start + last.length == start
                        && last.logical + last.length == self.logical =>
                {
                    last.length += length;
                }
                _ => self.extents.push(Extent {
                    logical: self.logical,
                    start,
                    length,
                    written: true,
                }),
            }
            self.logical += length;
            rest = left;
        }
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }
}
