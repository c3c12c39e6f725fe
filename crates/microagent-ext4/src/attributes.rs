//! Extended attributes: in the inode, in a block of their own, and large values in inodes of their own.

use crate::{
    bytes::{u16_at, u32_at},
    error::{Error, Result},
    inode::{Inode, MIN_SIZE},
    volume::Volume,
};

pub(crate) const MAGIC: u32 = 0xea02_0000;
pub(crate) const BLOCK_HEADER: usize = 32;

/// As much as Linux hands over, in bytes.
const MAX_VALUE: usize = 65_536;

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
        entries(volume, region, 0, inode.number(), &mut attributes)?;
    }
    let block = inode.attribute_block();
    if block != 0 {
        let block = volume.block(block)?;
        if u32_at(&block, 0) != MAGIC {
            return Err(damaged(inode.number()));
        }
        entries(
            volume,
            &block,
            BLOCK_HEADER,
            inode.number(),
            &mut attributes,
        )?;
    }
    Ok(attributes)
}

/// Values are counted from the region's beginning.
fn entries(
    volume: &Volume,
    region: &[u8],
    mut at: usize,
    number: u32,
    attributes: &mut Attributes,
) -> Result<()> {
    while u32_at(region, at) != 0 {
        let entry = region.get(at..at + 16).ok_or_else(|| damaged(number))?;
        let name_length = usize::from(entry[0]);
        let name = region
            .get(at + 16..at + 16 + name_length)
            .ok_or_else(|| damaged(number))?;
        let (offset, size) = (usize::from(u16_at(entry, 2)), u32_at(entry, 8) as usize);
        let value = match u32_at(entry, 4) {
            0 => region
                .get(offset..)
                .and_then(|rest| rest.get(..size))
                .ok_or_else(|| damaged(number))?
                .to_vec(),
            inode if size <= MAX_VALUE => large(volume, inode, size)?,
            _ => return Err(damaged(number)),
        };
        if let Some((_, prefix)) = PREFIXES.iter().find(|(index, _)| *index == entry[1]) {
            attributes.push(([*prefix, name].concat(), value));
        }
        at += (16 + name_length).next_multiple_of(4);
    }
    Ok(())
}

/// A value that has an inode of its own.
fn large(volume: &Volume, number: u32, size: usize) -> Result<Vec<u8>> {
    let inode = volume.value_inode(number)?;
    if inode.size() != size as u64 {
        return Err(damaged(number));
    }
    let mut value = vec![0; size];
    volume.content(&inode)?.read_at(0, &mut value)?;
    Ok(value)
}

fn damaged(number: u32) -> Error {
    Error::damaged(format!("inode {number} has broken extended attributes"))
}
