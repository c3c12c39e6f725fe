//! Extended attributes: from their Linux names and values to ext4's two places for them.
//!
//! Small sets stay in the inode, the rest goes to one block; what fits neither is refused by name.

use mkext4::csum;

use super::content::BLOCK;
use super::error::{EntryFault, show};

const MAGIC: u32 = 0xEA02_0000;
/// Bytes of a 256-byte inode behind its fixed 160.
pub(crate) const INODE_AREA: usize = 96;
const BLOCK_HEADER: usize = 32;

/// Name index, name behind the prefix, value.
type Attribute = (u8, Box<[u8]>, Box<[u8]>);

/// The attributes of one file, in ext4's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct XattrSet {
    attributes: Vec<Attribute>,
    /// How many of them live in the inode.
    in_inode: usize,
}

impl XattrSet {
    /// Translates full names and Linux values; refuses what ext4 cannot hold.
    pub(crate) fn new(pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, EntryFault> {
        let mut attributes = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let fail = |reason| EntryFault::Xattr {
                name: show(name),
                reason,
            };
            let (index, suffix) =
                split_name(name).ok_or_else(|| fail("ext4 does not know this namespace"))?;
            if suffix.len() > 255 {
                return Err(fail("its name is longer than 255 bytes"));
            }
            let value = match index {
                2 | 3 => {
                    acl_to_disk(value).ok_or_else(|| fail("it is not a version 2 POSIX ACL"))?
                }
                _ => value.clone(),
            };
            let entry = (index, suffix.into(), value.into_boxed_slice());
            if BLOCK_HEADER + 4 + entry_bytes(&entry) + value_bytes(&entry) > BLOCK {
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
        let block: usize = set
            .block_attributes()
            .iter()
            .map(|a| entry_bytes(a) + value_bytes(a))
            .sum();
        if BLOCK_HEADER + 4 + block > BLOCK {
            let name = pairs
                .first()
                .map_or_else(String::new, |(name, _)| show(name));
            return Err(EntryFault::Xattr {
                name,
                reason: "together with the others it is larger than ext4 holds (about 4000 bytes)",
            });
        }
        Ok(set)
    }

    /// Memory it takes, roughly.
    pub(crate) fn memory(&self) -> u64 {
        self.attributes
            .iter()
            .map(|(_, name, value)| 64 + name.len() as u64 + value.len() as u64)
            .sum()
    }

    fn block_attributes(&self) -> &[Attribute] {
        &self.attributes[self.in_inode..]
    }

    pub(crate) fn needs_block(&self) -> bool {
        self.in_inode < self.attributes.len()
    }

    /// The area behind the inode's fixed fields; empty where there is nothing to store.
    pub(crate) fn inode_area(&self) -> Vec<u8> {
        if self.in_inode == 0 {
            return Vec::new();
        }
        let mut area = vec![0; INODE_AREA];
        area[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // Offsets count from behind the magic; in-inode entries carry no hash.
        render(&mut area[4..], &self.attributes[..self.in_inode], 0);
        area
    }

    /// The attribute block, bound by checksum to its block number.
    pub(crate) fn block(&self, checksum_seed: u32, number: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&1u32.to_le_bytes());
        block[8..12].copy_from_slice(&1u32.to_le_bytes());
        let hashes = render(
            &mut block[BLOCK_HEADER..],
            self.block_attributes(),
            BLOCK_HEADER,
        );
        block[12..16].copy_from_slice(&csum::xattr_block_hash(hashes).to_le_bytes());
        let checksum = csum::xattr_block(checksum_seed, u64::from(number), &block);
        block[16..20].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// Entries grow from the front, values from the back.
fn render(region: &mut [u8], attributes: &[Attribute], base: usize) -> Vec<u32> {
    let mut hashes = Vec::with_capacity(attributes.len());
    let (mut entry, mut value_at) = (0, region.len());
    for attribute in attributes {
        let (index, name, value) = attribute;
        value_at -= value_bytes(attribute);
        region[value_at..value_at + value.len()].copy_from_slice(value);
        let hash = if base == 0 {
            0
        } else {
            csum::xattr_entry_hash(name, value)
        };
        region[entry] = name.len() as u8;
        region[entry + 1] = *index;
        region[entry + 2..entry + 4].copy_from_slice(&((base + value_at) as u16).to_le_bytes());
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

fn value_bytes(attribute: &Attribute) -> usize {
    attribute.2.len().next_multiple_of(4)
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
        assert!(XattrSet::new(&[big("os2.a", 1)]).is_err());
        assert!(XattrSet::new(&[big("user.", 1)]).is_err());
    }
}
