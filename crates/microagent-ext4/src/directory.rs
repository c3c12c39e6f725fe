//! Directories: names and what they stand for.

use crate::{
    bytes::{u16_at, u32_at},
    error::{Error, Result},
};

/// The most entries of one directory that are read.
pub(crate) const MAX_ENTRIES: usize = 1 << 20;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// The inode it stands for.
    pub inode: u32,
}

/// Adds the entries of one block, `.` and `..` left out. Index blocks look empty.
pub(crate) fn read_block(block: &[u8], number: u32, entries: &mut Vec<DirEntry>) -> Result<()> {
    let damaged = || Error::damaged(format!("directory {number} has a broken entry"));
    let mut at = 0;
    while at < block.len() {
        let rest = &block[at..];
        let length = usize::from(u16_at(rest, 4));
        if length < 8 || length % 4 != 0 || length > rest.len() {
            return Err(damaged());
        }
        let (inode, name_length) = (u32_at(rest, 0), usize::from(rest[6]));
        if inode != 0 && name_length > 0 {
            let name = rest[..length].get(8..8 + name_length).ok_or_else(damaged)?;
            if name != b"." && name != b".." {
                if name.contains(&b'/') || name.contains(&0) {
                    return Err(damaged());
                }
                if entries.len() >= MAX_ENTRIES {
                    return Err(Error::unknown(format!(
                        "a directory of more than {MAX_ENTRIES} entries"
                    )));
                }
                entries.push(DirEntry {
                    name: name.to_vec(),
                    inode,
                });
            }
        }
        at += length;
    }
    Ok(())
}
