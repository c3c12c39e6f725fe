//! Inodes: what a file is and where its content is.

use crate::{
    bytes::{u16_at, u32_at, wide},
    error::{Error, Result},
};

/// The number of the root directory.
pub const ROOT: u32 = 2;

pub(crate) const MIN_SIZE: usize = 128;
/// Where the pointers to content are, and how long.
pub(crate) const CONTENT: std::ops::Range<usize> = 0x28..0x64;

pub(crate) mod flags {
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    pub(crate) const VALUE: u32 = 0x20_0000;
    pub(crate) const INLINE: u32 = 0x1000_0000;
    pub(crate) const ENCRYPTED: u32 = 0x800;
    pub(crate) const VERITY: u32 = 0x10_0000;
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// The type bits of a mode.
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0x1000,
            Self::Character(..) => 0x2000,
            Self::Directory => 0x4000,
            Self::Block(..) => 0x6000,
            Self::File => 0x8000,
            Self::Symlink => 0xa000,
            Self::Socket => 0xc000,
        }
    }

    /// The type byte of a directory entry.
    pub(crate) fn entry_byte(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::Character(..) => 3,
            Self::Block(..) => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }
}

/// An inode as it was read.
#[derive(Clone, Debug)]
pub struct Inode {
    pub(crate) raw: Vec<u8>,
    number: u32,
    kind: FileKind,
}

impl Inode {
    /// Reads the inode of a file.
    pub(crate) fn parse(number: u32, raw: Vec<u8>) -> Result<Self> {
        let inode = Self::read(number, raw)?;
        inode.refuse(flags::VALUE)?;
        Ok(inode)
    }

    /// Reads the inode of an attribute's value.
    pub(crate) fn parse_value(number: u32, raw: Vec<u8>) -> Result<Self> {
        let inode = Self::read(number, raw)?;
        if inode.kind != FileKind::File || inode.flags() & flags::VALUE == 0 {
            return Err(Error::damaged(format!("inode {number} is no attribute")));
        }
        Ok(inode)
    }

    fn read(number: u32, raw: Vec<u8>) -> Result<Self> {
        let mode = u16_at(&raw, 0);
        let device = || {
            let (old, new) = (u32_at(&raw, 0x28), u32_at(&raw, 0x2c));
            if old != 0 {
                (old >> 8 & 0xff, old & 0xff)
            } else {
                (new >> 8 & 0xfff, new & 0xff | (new >> 12 & 0xf_ff00))
            }
        };
        let kind = match mode & 0xf000 {
            0x1000 => FileKind::Fifo,
            0x2000 => {
                let (major, minor) = device();
                FileKind::Character(major, minor)
            }
            0x4000 => FileKind::Directory,
            0x6000 => {
                let (major, minor) = device();
                FileKind::Block(major, minor)
            }
            0x8000 => FileKind::File,
            0xa000 => FileKind::Symlink,
            0xc000 => FileKind::Socket,
            _ => return Err(Error::damaged(format!("inode {number} has no type"))),
        };
        let inode = Self { raw, number, kind };
        inode.refuse(flags::INLINE | flags::ENCRYPTED | flags::VERITY)?;
        Ok(inode)
    }

    fn refuse(&self, strange: u32) -> Result<()> {
        if self.flags() & strange == 0 {
            return Ok(());
        }
        Err(Error::unknown(format!(
            "features of single files (inode {}, flags 0x{:x})",
            self.number,
            self.flags()
        )))
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Permission bits (`0o7777`).
    #[must_use]
    pub fn mode(&self) -> u16 {
        u16_at(&self.raw, 0) & 0o7777
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        u32::from(u16_at(&self.raw, 0x78)) << 16 | u32::from(u16_at(&self.raw, 0x2))
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        u32::from(u16_at(&self.raw, 0x7a)) << 16 | u32::from(u16_at(&self.raw, 0x18))
    }

    /// Number of names.
    #[must_use]
    pub fn links(&self) -> u16 {
        u16_at(&self.raw, 0x1a)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let high = match self.kind {
            FileKind::File | FileKind::Directory => u32_at(&self.raw, 0x6c),
            _ => 0,
        };
        wide(u32_at(&self.raw, 0x4), high)
    }

    /// Modification time: seconds and nanoseconds since 1970.
    #[must_use]
    pub fn mtime(&self) -> (i64, u32) {
        let seconds = i64::from(u32_at(&self.raw, 0x10).cast_signed());
        if self.extra_size() < 0x8c - MIN_SIZE {
            return (seconds, 0);
        }
        let extra = u32_at(&self.raw, 0x88);
        let nanos = (extra >> 2).min(999_999_999);
        (seconds + (i64::from(extra & 3) << 32), nanos)
    }

    pub(crate) fn flags(&self) -> u32 {
        u32_at(&self.raw, 0x20)
    }

    pub(crate) fn generation(&self) -> u32 {
        u32_at(&self.raw, 0x64)
    }

    /// The block with attributes that do not fit into the inode; 0 for none.
    pub(crate) fn attribute_block(&self) -> u64 {
        wide(u32_at(&self.raw, 0x68), u32::from(u16_at(&self.raw, 0x76)))
    }

    /// How much of what is behind the first 128 bytes is fields.
    pub(crate) fn extra_size(&self) -> usize {
        if self.raw.len() <= MIN_SIZE {
            return 0;
        }
        usize::from(u16_at(&self.raw, 0x80)).min(self.raw.len() - MIN_SIZE)
    }

    /// The content of a symbolic link that is kept in the inode itself.
    pub(crate) fn short_target(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.size()).ok()?;
        if self.kind != FileKind::Symlink || self.flags() & flags::EXTENTS != 0 {
            return None;
        }
        self.raw[CONTENT].get(..length)
    }
}
