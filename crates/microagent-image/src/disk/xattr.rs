//! Extended attributes: from their Linux names and values to ext4's two places for them.
//!
//! Small sets stay in the inode, the rest goes to one block, and large values to inodes of their own (`ea_inode`);
//! what fits nowhere is refused by name.

use mkext4::csum;

use super::content::BLOCK;
use super::error::{EntryFault, show};

const MAGIC: u32 = 0xEA02_0000;
/// Bytes of a 256-byte inode behind its fixed 160.
pub(crate) const INODE_AREA: usize = 96;
const BLOCK_HEADER: usize = 32;
/// A block of a workspace's scratch disk, to which a file is copied with all its attributes once it is written to.
const SCRATCH_BLOCK: usize = 4096;

/// Name index, name behind the prefix, value, and whether the value has an inode of its own.
type Attribute = (u8, Box<[u8]>, Box<[u8]>, bool);

/// The attributes of one file, in ext4's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct XattrSet {
    attributes: Vec<Attribute>,
    /// How many of them live in the inode.
    in_inode: usize,
}

impl XattrSet {
    /// Translates full names and Linux values; refuses what ext4 cannot hold. What another system means (macOS' tar
    /// writes `com.apple.provenance`) is left out, as all who unpack on Linux leave it out.
    pub(crate) fn new(pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, EntryFault> {
        let mut attributes = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let fail = |reason| EntryFault::Xattr {
                name: show(name),
                reason,
            };
            if !is_of_linux(name) {
                tracing::debug!(name = show(name), "an attribute that no Linux knows");
                continue;
            }
            let (index, suffix) = split_name(name).ok_or_else(|| fail("ext4 does not know it"))?;
            if suffix.len() > 255 {
                return Err(fail("its name is longer than 255 bytes"));
            }
            let value = match index {
                2 | 3 => {
                    acl_to_disk(value).ok_or_else(|| fail("it is not a version 2 POSIX ACL"))?
                }
                _ => value.clone(),
            };
            let entry = (index, suffix.into(), value.into_boxed_slice(), false);
            if BLOCK_HEADER + 4 + entry_bytes(&entry) + value_bytes(&entry) > SCRATCH_BLOCK {
                return Err(fail("it is larger than ext4 holds (about 4000 bytes)"));
            }
            attributes.push(entry);
        }
        attributes.sort_by(|a, b| (a.0, a.1.len(), &a.1).cmp(&(b.0, b.1.len(), &b.1)));
        let mut set = XattrSet {
            attributes,
            in_inode: 0,
        };
        let mut used = 4 + 4;
        for attribute in &set.attributes {
            used += entry_bytes(attribute) + value_bytes(attribute);
            if used > INODE_AREA {
                break;
            }
            set.in_inode += 1;
        }
        if set.block_bytes() > SCRATCH_BLOCK {
            let name = pairs
                .first()
                .map_or_else(String::new, |(name, _)| show(name));
            return Err(EntryFault::Xattr {
                name,
                reason: "together with the others it is larger than ext4 holds (about 4000 bytes)",
            });
        }
        // Blocks are smaller here: the largest values go until the others fit.
        while set.block_bytes() > BLOCK {
            let in_block = set.attributes[set.in_inode..].iter_mut();
            match in_block.max_by_key(|attribute| value_bytes(attribute)) {
                Some(largest) if value_bytes(largest) > 0 => largest.3 = true,
                _ => break,
            }
        }
        Ok(set)
    }

    /// What a block for those that are not in the inode must hold.
    fn block_bytes(&self) -> usize {
        let in_block = self.block_attributes().iter();
        BLOCK_HEADER
            + 4
            + in_block
                .map(|a| entry_bytes(a) + value_bytes(a))
                .sum::<usize>()
    }

    /// Memory it takes, roughly.
    pub(crate) fn memory(&self) -> u64 {
        self.attributes
            .iter()
            .map(|(_, name, value, _)| 64 + name.len() as u64 + value.len() as u64)
            .sum()
    }

    fn block_attributes(&self) -> &[Attribute] {
        &self.attributes[self.in_inode..]
    }

    pub(crate) fn needs_block(&self) -> bool {
        self.in_inode < self.attributes.len()
    }

    /// The values that have an inode of their own, in the order of the numbers these get.
    pub(crate) fn large_values(&self) -> impl Iterator<Item = &[u8]> {
        let large = self.attributes.iter().filter(|attribute| attribute.3);
        large.map(|(_, _, value, _)| &**value)
    }

    /// The area behind the inode's fixed fields; empty where there is nothing to store.
    pub(crate) fn inode_area(&self) -> Vec<u8> {
        if self.in_inode == 0 {
            return Vec::new();
        }
        let mut area = vec![0; INODE_AREA];
        area[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // Offsets count from behind the magic; in-inode entries carry no hash.
        let attributes = &self.attributes[..self.in_inode];
        render(&mut area[4..], attributes, 0, 0, 0);
        area
    }

    /// The attribute block, bound by checksum to its block number; `first` is the inode of the first large value.
    pub(crate) fn block(&self, checksum_seed: u32, number: u32, first: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&1u32.to_le_bytes());
        block[8..12].copy_from_slice(&1u32.to_le_bytes());
        let hashes = render(
            &mut block[BLOCK_HEADER..],
            self.block_attributes(),
            BLOCK_HEADER,
            checksum_seed,
            first,
        );
        block[12..16].copy_from_slice(&csum::xattr_block_hash(hashes).to_le_bytes());
        let checksum = csum::xattr_block(checksum_seed, u64::from(number), &block);
        block[16..20].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// What an inode says of the value that it holds, and what its attribute's hash is made of.
pub(crate) fn value_hash(checksum_seed: u32, value: &[u8]) -> u32 {
    csum::crc32c_raw(checksum_seed, value)
}

/// Entries grow from the front, values from the back. Large values are in the inodes from `large` on.
fn render(
    region: &mut [u8],
    attributes: &[Attribute],
    base: usize,
    checksum_seed: u32,
    mut large: u32,
) -> Vec<u32> {
    let mut hashes = Vec::with_capacity(attributes.len());
    let (mut entry, mut value_at) = (0, region.len());
    for attribute in attributes {
        let (index, name, value, is_large) = attribute;
        region[entry] = name.len() as u8;
        region[entry + 1] = *index;
        let hash = if *is_large {
            region[entry + 4..entry + 8].copy_from_slice(&large.to_le_bytes());
            large += 1;
            let of_value = value_hash(checksum_seed, value);
            csum::xattr_entry_hash(name, &of_value.to_le_bytes())
        } else {
            value_at -= value_bytes(attribute);
            region[value_at..value_at + value.len()].copy_from_slice(value);
            let at = (base + value_at) as u16;
            region[entry + 2..entry + 4].copy_from_slice(&at.to_le_bytes());
            match base {
                0 => 0,
                _ => csum::xattr_entry_hash(name, value),
            }
        };
        region[entry + 8..entry + 12].copy_from_slice(&(value.len() as u32).to_le_bytes());
        region[entry + 12..entry + 16].copy_from_slice(&hash.to_le_bytes());
        region[entry + 16..entry + 16 + name.len()].copy_from_slice(name);
        entry += entry_bytes(attribute);
        hashes.push(hash);
    }
    hashes
}

fn entry_bytes(attribute: &Attribute) -> usize {
    16 + attribute.1.len().next_multiple_of(4)
}

/// What its value takes where the entries are.
fn value_bytes(attribute: &Attribute) -> usize {
    match attribute.3 {
        true => 0,
        false => attribute.2.len().next_multiple_of(4),
    }
}

/// Whether its namespace is one that Linux has.
fn is_of_linux(name: &[u8]) -> bool {
    let namespaces = [&b"user."[..], b"trusted.", b"security.", b"system."];
    namespaces.iter().any(|space| name.starts_with(space))
}

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(index, prefix)| {
            Some((
                index,
                name.strip_prefix(prefix).filter(|rest| !rest.is_empty())?,
            ))
        })
}

/// A POSIX ACL as system calls show it (version 2, 8 bytes an entry) to ext4's form (version 1, ids only where they
/// mean something).
fn acl_to_disk(value: &[u8]) -> Option<Vec<u8>> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    if entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            // ACL_USER, ACL_GROUP
            0x02 | 0x08 => disk.extend_from_slice(entry),
            // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER
            0x01 | 0x04 | 0x10 | 0x20 => disk.extend_from_slice(&entry[..4]),
            _ => return None,
        }
    }
    Some(disk)
}

/// The reverse: a POSIX ACL as ext4 keeps it to the form of system calls.
pub(crate) fn acl_from_disk(value: &[u8]) -> Option<Vec<u8>> {
    let mut rest = value.strip_prefix(&1u32.to_le_bytes())?;
    let mut acl = 2u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let tag = u16::from_le_bytes([*rest.first()?, *rest.get(1)?]);
        let length = match tag {
            0x02 | 0x08 => 8,
            0x01 | 0x04 | 0x10 | 0x20 => 4,
            _ => return None,
        };
        let (entry, after) = rest.split_at_checked(length)?;
        acl.extend_from_slice(entry);
        if length == 4 {
            // ACL_UNDEFINED_ID
            acl.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        rest = after;
    }
    Some(acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_lose_meaningless_ids() {
        let mut acl = 2u32.to_le_bytes().to_vec();
        acl.extend_from_slice(&[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        acl.extend_from_slice(&[2, 0, 4, 0, 0xe8, 3, 0, 0]);
        let disk = acl_to_disk(&acl).unwrap();
        assert_eq!(disk, [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(acl_from_disk(&disk), Some(acl.clone()));
        for cut in [1, 5, 7, 11] {
            assert_eq!(acl_from_disk(&disk[..cut]), None, "{cut}");
        }
        assert!(acl_to_disk(&acl[..acl.len() - 1]).is_none());
        assert!(acl_to_disk(b"").is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let big = |name: &str, len| (name.as_bytes().to_vec(), vec![7u8; len]);
        assert!(XattrSet::new(&[big("user.a", 4000)]).is_ok());
        assert!(
            matches!(XattrSet::new(&[big("user.a", 4096)]), Err(EntryFault::Xattr { name, .. }) if name == "user.a")
        );
        assert!(XattrSet::new(&[big("user.a", 3000), big("user.b", 3000)]).is_err());
        assert!(XattrSet::new(&[big("system.a", 1)]).is_err());
        // What other systems mean is nobody's loss here, however large it is.
        let foreign = XattrSet::new(&[big("com.apple.a", 5000), big("os2.a", 1)]).unwrap();
        assert_eq!(foreign, XattrSet::default());
        assert!(XattrSet::new(&[big("user.", 1)]).is_err());
    }

    #[test]
    fn large_values_go_until_the_others_fit() {
        let set = |lengths: &[usize]| {
            let pairs = lengths.iter().enumerate().map(|(at, length)| {
                let name = format!("user.{at}").into_bytes();
                (name, vec![7; *length])
            });
            let set = XattrSet::new(&pairs.collect::<Vec<_>>()).unwrap();
            let block = set.block(1, 2, 100);
            assert!(set.block_bytes() <= BLOCK && block.len() == BLOCK);
            set.large_values().map(<[u8]>::len).collect::<Vec<_>>()
        };
        assert_eq!(set(&[500, 1400]), [0; 0]);
        assert_eq!(set(&[300, 3000, 400]), [3000]);
        assert_eq!(set(&[1500, 1000, 900, 20]), [1500]);
        assert_eq!(set(&[1300, 1300, 1300]).len(), 2);
    }
}
