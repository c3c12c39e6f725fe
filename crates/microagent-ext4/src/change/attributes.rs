//! Extended attributes of files that are made or changed.

use super::{BLOCK, Change, inodes::put_sectors};
use crate::{
    attributes::{Attributes, BLOCK_HEADER, MAGIC, PREFIXES},
    bytes::{crc32c, put16, put32, u16_at, u32_at, wide},
    error::{Error, Result},
    inode::{Inode, MIN_SIZE},
};

/// One attribute as it is kept: the code of the first part of its name, the rest, the value.
type Kept<'a> = (u8, &'a [u8], &'a [u8]);

impl Change {
    /// Sets all extended attributes of a file.
    ///
    /// # Errors
    /// [`Error::Impossible`] if there are too many or one has a strange name.
    pub fn set_attributes(&mut self, number: u32, attributes: &Attributes) -> Result<()> {
        let inode = self.inode(number)?;
        self.drop_attributes(&inode)?;
        self.groups.remember_attributes(number, attributes);
        let mut kept = Vec::new();
        for (name, value) in attributes {
            kept.push(split(name, value)?);
        }
        // The kernel searches them in this order.
        kept.sort_by_key(|(index, name, _)| (*index, name.len(), *name));
        let area = MIN_SIZE + inode.extra_size();
        let raw = self.raw(number)?;
        raw[area..].fill(0);
        if kept.is_empty() {
            return Ok(());
        }
        if size(&kept) + 8 <= raw.len() - area {
            put32(&mut raw[area..], 0, MAGIC);
            render(&mut raw[area + 4..], &kept, 0);
            return Ok(());
        }
        if BLOCK_HEADER + size(&kept) + 4 > BLOCK {
            return Err(Error::Impossible {
                what: "the extended attributes of a file take more than 4,000 bytes, which ext4 \
                       does not hold"
                    .to_owned(),
            });
        }
        self.attribute_block(number, &kept)
    }

    fn attribute_block(&mut self, number: u32, kept: &[Kept<'_>]) -> Result<()> {
        let block = self.groups.take_block(&self.volume)?;
        let mut bytes = vec![0; BLOCK];
        put32(&mut bytes, 0, MAGIC);
        put32(&mut bytes, 4, 1);
        put32(&mut bytes, 8, 1);
        let hash = render(&mut bytes[BLOCK_HEADER..], kept, BLOCK_HEADER);
        put32(&mut bytes, 12, hash);
        let sum = self.attribute_sum(block, &bytes);
        put32(&mut bytes, 16, sum);
        self.write_new(block, &bytes)?;
        let raw = self.raw(number)?;
        put32(raw, 0x68, block as u32);
        put16(raw, 0x76, (block >> 32) as u16);
        let sectors = wide(u32_at(raw, 0x1c), u32::from(u16_at(raw, 0x74)));
        put_sectors(raw, sectors + BLOCK as u64 / 512);
        Ok(())
    }

    fn attribute_sum(&self, block: u64, bytes: &[u8]) -> u32 {
        let seed = crc32c(self.volume.superblock().seed, &block.to_le_bytes());
        let mut bytes = bytes.to_vec();
        put32(&mut bytes, 16, 0);
        crc32c(seed, &bytes)
    }

    /// Lets go of a file's block of attributes, which others may share.
    pub(super) fn drop_attributes(&mut self, inode: &Inode) -> Result<()> {
        let block = inode.attribute_block();
        if block == 0 {
            return Ok(());
        }
        let mut bytes = self.newest(block)?;
        let users = u32_at(&bytes, 4);
        if users > 1 {
            put32(&mut bytes, 4, users - 1);
            let sum = self.attribute_sum(block, &bytes);
            put32(&mut bytes, 16, sum);
            self.shared.insert(block, bytes);
        } else {
            self.groups.free_blocks(block, 1);
        }
        let raw = self.raw(inode.number())?;
        put32(raw, 0x68, 0);
        put16(raw, 0x76, 0);
        let sectors = wide(u32_at(raw, 0x1c), u32::from(u16_at(raw, 0x74)));
        put_sectors(raw, sectors.saturating_sub(BLOCK as u64 / 512));
        Ok(())
    }

    /// A block that several files share, as it is to be.
    fn newest(&self, block: u64) -> Result<Vec<u8>> {
        match self.shared.get(&block) {
            Some(bytes) => Ok(bytes.clone()),
            None => self.volume.block(block),
        }
    }
}

fn split<'a>(name: &'a [u8], value: &'a [u8]) -> Result<Kept<'a>> {
    PREFIXES
        .iter()
        .find_map(|(index, prefix)| {
            let rest = name.strip_prefix(*prefix)?;
            (rest.len() < 256).then_some((*index, rest, value))
        })
        .ok_or_else(|| Error::Impossible {
            what: format!(
                "the extended attribute {:?} has a name that ext4 does not hold",
                String::from_utf8_lossy(name)
            ),
        })
}

fn size(kept: &[Kept<'_>]) -> usize {
    kept.iter()
        .map(|(_, name, value)| entry_size(name) + value.len().next_multiple_of(4))
        .sum()
}

fn entry_size(name: &[u8]) -> usize {
    16 + name.len().next_multiple_of(4)
}

/// Entries from the front, values from the back; gives the hash over all of them. Offsets count
/// from `base` bytes before the region; in an inode there is no hash.
fn render(region: &mut [u8], kept: &[Kept<'_>], base: usize) -> u32 {
    let (mut at, mut value_at) = (0, region.len());
    let mut all: u32 = 0;
    for (index, name, value) in kept {
        value_at -= value.len().next_multiple_of(4);
        region[value_at..value_at + value.len()].copy_from_slice(value);
        let hash = if base == 0 {
            0
        } else {
            entry_hash(name, value)
        };
        all = all.rotate_left(16) ^ hash;
        let entry = &mut region[at..];
        entry[0] = name.len() as u8;
        entry[1] = *index;
        put16(entry, 2, (base + value_at) as u16);
        put32(entry, 8, value.len() as u32);
        put32(entry, 12, hash);
        entry[16..16 + name.len()].copy_from_slice(name);
        at += entry_size(name);
    }
    all
}

fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(hash, |hash, word| {
        let mut padded = [0; 4];
        padded[..word.len()].copy_from_slice(word);
        hash.rotate_left(16) ^ u32::from_le_bytes(padded)
    })
}
