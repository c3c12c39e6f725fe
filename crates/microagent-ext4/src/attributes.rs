//! Extended attributes: in the inode, and in a block of their own.

use crate::{
    bytes::{u16_at, u32_at},
    error::{Error, Result},
    inode::{Inode, MIN_SIZE},
    volume::Volume,
};

pub(crate) const MAGIC: u32 = 0xea02_0000;
pub(crate) const BLOCK_HEADER: usize = 32;

/// What the first part of a name is kept as.
pub(crate) const PREFIXES: &[(u8, &[u8])] = &[
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (7, b"system."),
];

/// Attributes by full name.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) fn read(volume: &Volume, inode: &Inode) -> Result<Attributes> {
    let mut attributes = Attributes::new();
    let inline = &inode.raw[(MIN_SIZE + inode.extra_size()).min(inode.raw.len())..];
    if u32_at(inline, 0) == MAGIC {
        // Values are counted from the first entry.
        let region = &inline[4..];
        entries(region, 0, region, inode.number(), &mut attributes)?;
    }
    let block = inode.attribute_block();
    if block != 0 {
        let block = volume.block(block)?;
        if u32_at(&block, 0) != MAGIC {
            return Err(damaged(inode.number()));
        }
        entries(
            &block,
            BLOCK_HEADER,
            &block,
            inode.number(),
            &mut attributes,
        )?;
    }
    Ok(attributes)
}

fn entries(
    region: &[u8],
    mut at: usize,
    values: &[u8],
    number: u32,
    attributes: &mut Attributes,
) -> Result<()> {
    while u32_at(region, at) != 0 {
        let entry = region.get(at..at + 16).ok_or_else(|| damaged(number))?;
        let name_length = usize::from(entry[0]);
        let name = region
            .get(at + 16..at + 16 + name_length)
            .ok_or_else(|| damaged(number))?;
        if u32_at(entry, 4) != 0 {
            return Err(Error::unknown("large extended attributes"));
        }
        let (offset, size) = (usize::from(u16_at(entry, 2)), u32_at(entry, 8) as usize);
        let value = values
            .get(offset..)
            .and_then(|rest| rest.get(..size))
            .ok_or_else(|| damaged(number))?;
        if let Some((_, prefix)) = PREFIXES.iter().find(|(index, _)| *index == entry[1]) {
            attributes.push(([*prefix, name].concat(), value.to_vec()));
        }
        at += (16 + name_length).next_multiple_of(4);
    }
    Ok(())
}

fn damaged(number: u32) -> Error {
    Error::damaged(format!("inode {number} has broken extended attributes"))
}
