//! The superblock: how a file system is laid out, what it can hold, and how full it is.

use crate::{
    bytes::{crc32c, u16_at, u32_at, wide},
    error::{Error, Result},
};

/// Where it is, and how long.
pub(crate) const OFFSET: u64 = 1024;
pub(crate) const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;

/// Features that change where things are ("incompat").
pub(crate) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const WIDE: u32 = 0x80;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const EA_INODE: u32 = 0x400;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
    /// What is understood here.
    pub(crate) const KNOWN: u32 =
        FILETYPE | RECOVER | EXTENTS | WIDE | FLEX_BG | EA_INODE | CSUM_SEED | LARGEDIR;
    /// Names for messages.
    pub(crate) const NAMES: &[(u32, &str)] = &[
        (0x1, "compression"),
        (0x8, "an external journal"),
        (0x10, "meta block groups"),
        (0x100, "multiple mount protection"),
        (0x1000, "data in directories"),
        (0x8000, "inline data"),
        (0x1_0000, "encryption"),
        (0x2_0000, "case folding"),
    ];
}

/// Features that whoever writes must know ("ro_compat").
pub(crate) mod ro_compat {
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    /// Sparse superblocks, large and huge files, many subdirectories, large inodes, checksums.
    pub(crate) const KNOWN: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | METADATA_CSUM;
}

/// Features that anybody may ignore, but whoever writes a journal should not ("compat").
pub(crate) mod compat {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    /// A journal, attributes, a resize inode, indexed directories, few backup superblocks.
    pub(crate) const KNOWN: u32 = HAS_JOURNAL | 0x8 | 0x10 | 0x20 | 0x200;
}

/// A checked superblock.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub(crate) raw: [u8; LENGTH],
    pub(crate) block_size: usize,
    pub(crate) blocks: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_size: usize,
    pub(crate) desc_size: usize,
    pub(crate) groups: u32,
    pub(crate) incompat: u32,
    pub(crate) ro_compat: u32,
    pub(crate) compat: u32,
    /// What every checksum of metadata begins with.
    pub(crate) seed: u32,
}

impl Superblock {
    pub(crate) fn parse(raw: [u8; LENGTH]) -> Result<Self> {
        let long = |at| u32_at(&raw, at);
        if u16_at(&raw, 0x38) != MAGIC {
            return Err(Error::damaged("it has no ext4 superblock"));
        }
        let (compat, incompat, ro_compat) = (long(0x5c), long(0x60), long(0x64));
        let strange = incompat & !incompat::KNOWN;
        if strange != 0 {
            let name = incompat::NAMES
                .iter()
                .find(|(bit, _)| strange & bit != 0)
                .map_or("a feature from after our time", |(_, name)| name);
            return Err(Error::unknown(format!("{name} (0x{strange:x})")));
        }
        if incompat & incompat::EXTENTS == 0 || incompat & incompat::FILETYPE == 0 {
            return Err(Error::unknown("the formats of ext2 and ext3"));
        }
        let bad = |what: &str| Err(Error::damaged(format!("its superblock has {what}")));
        let block_size = match long(0x18) {
            size @ 0..=2 => 1024_usize << size,
            _ => return bad("a strange block size"),
        };
        let high = |at| {
            if incompat & incompat::WIDE == 0 {
                0
            } else {
                long(at)
            }
        };
        let blocks = wide(long(0x4), high(0x150));
        let first_data_block = u64::from(long(0x14));
        let blocks_per_group = long(0x20);
        let (inodes, inodes_per_group) = (long(0x0), long(0x28));
        let inode_size = usize::from(u16_at(&raw, 0x58));
        let desc_size = if incompat & incompat::WIDE == 0 {
            32
        } else {
            usize::from(u16_at(&raw, 0xfe))
        };
        if first_data_block != u64::from(block_size == 1024) || blocks <= first_data_block {
            return bad("strange block numbers");
        }
        let bits = block_size as u32 * 8;
        if blocks_per_group == 0 || blocks_per_group > bits {
            return bad("strange block groups");
        }
        if inodes_per_group == 0 || inodes_per_group > bits {
            return bad("strange inode groups");
        }
        if !matches!(inode_size, 128 | 256 | 512 | 1024) || inode_size > block_size {
            return bad("a strange inode size");
        }
        if !matches!(desc_size, 32 | 64) {
            return bad("strange group descriptors");
        }
        let groups = (blocks - first_data_block).div_ceil(u64::from(blocks_per_group));
        let Ok(groups) = u32::try_from(groups) else {
            return bad("too many block groups");
        };
        if u64::from(inodes) != u64::from(groups) * u64::from(inodes_per_group) {
            return bad("a strange number of inodes");
        }
        let seed = if incompat & incompat::CSUM_SEED != 0 {
            long(0x270)
        } else {
            crc32c(!0, &raw[0x68..0x78])
        };
        Ok(Self {
            raw,
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            inodes,
            inodes_per_group,
            inode_size,
            desc_size,
            groups,
            incompat,
            ro_compat,
            compat,
            seed,
        })
    }

    /// Whether its kernel found it damaged.
    pub(crate) fn has_errors(&self) -> bool {
        u16_at(&self.raw, 0x3a) & 0x2 != 0
    }

    /// Whether what the journal holds is newer than the rest.
    pub(crate) fn needs_recovery(&self) -> bool {
        self.incompat & incompat::RECOVER != 0
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        let high = if self.incompat & incompat::WIDE == 0 {
            0
        } else {
            u32_at(&self.raw, 0x158)
        };
        wide(u32_at(&self.raw, 0xc), high)
    }
}

/// How full a disk is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The size of the disk as its machine sees it.
    pub size: u64,
    /// What files and their metadata take of it.
    pub used: u64,
    /// What is left.
    pub free: u64,
    /// What the file takes on the host.
    pub allocated: u64,
}

impl Usage {
    /// The share that is used, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.size == 0 {
            return 0.0;
        }
        self.used as f64 * 100.0 / self.size as f64
    }

    /// Judges by a superblock and by what the file takes on the host (its `st_blocks`, of 512
    /// bytes each). Of a disk in use, or left in the middle, it is what was written last.
    ///
    /// # Errors
    /// If that is no superblock.
    pub fn new(superblock: &[u8; LENGTH], blocks_on_host: u64) -> Result<Self> {
        let superblock = Superblock::parse(*superblock)?;
        let bytes = |blocks: u64| blocks.saturating_mul(superblock.block_size as u64);
        let free = superblock.free_blocks().min(superblock.blocks);
        Ok(Self {
            size: bytes(superblock.blocks),
            used: bytes(superblock.blocks - free),
            free: bytes(free),
            allocated: blocks_on_host.saturating_mul(512),
        })
    }
}
