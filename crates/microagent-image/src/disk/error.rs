//! What can go wrong between a layer and a disk, each naming the layer, the entry and the remedy.

use std::io;
use std::path::PathBuf;

pub(crate) use microagent_files::show;
use microagent_files::tar::{self, TarFault};

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The disk file could not be written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Output {
        /// What was being done, as a verb.
        action: &'static str,
        /// The disk being written.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A layer was refused.
    #[error("layer {layer}: {fault}")]
    Layer {
        /// The caller's label of the layer (usually its digest).
        layer: String,
        /// What is wrong with it.
        #[source]
        fault: LayerFault,
    },
    /// A layer's uncompressed content is not what the image config promises.
    #[error(
        "layer {layer}: the uncompressed content has the digest sha256:{actual}, but the image config promises sha256:{expected}; the layer is corrupt or was tampered with: pull or import the image again"
    )]
    DiffId {
        /// The caller's label of the layer.
        layer: String,
        /// The digest of the image config (hex).
        expected: String,
        /// The digest of what was read (hex).
        actual: String,
    },
    /// What was kept of a converted layer cannot be read.
    #[error("{path} is no index of a layer: {source}; remove it, and it is made again from the layer", path = path.display())]
    Piece {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The merged tree does not fit the file system's format.
    #[error("cannot lay out the disk: {0}")]
    Layout(String),
    /// A scratch disk of an impossible size was asked for.
    #[error(
        "a scratch disk of {mebibytes} MiB is not possible: choose a size from 16 to 1048576 MiB"
    )]
    ScratchSize {
        /// The size asked for.
        mebibytes: u64,
    },
}

/// What is wrong with one layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerFault {
    /// The layer's bytes could not be read or decompressed.
    #[error("cannot read or decompress it: {0}")]
    Read(#[from] io::Error),
    /// The stream ended in the middle of something.
    #[error("it ends at byte {offset}, in the middle of {what}; the archive is truncated")]
    Truncated {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// A header is not a tar header, or its extension records are malformed.
    #[error("bad tar header at byte {offset}: {reason}")]
    Header {
        /// Offset of the header in the uncompressed stream.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// One entry asks for something that is refused.
    #[error("entry {name:?}: {fault}")]
    Entry {
        /// The entry's name as in the archive (invalid UTF-8 shown as U+FFFD).
        name: String,
        /// Why it is refused.
        #[source]
        fault: EntryFault,
    },
    /// One of [`Limits`](super::Limits) was exceeded.
    #[error("it exceeds the limit of {limit} {what}{at}; raise `Limits::{field}` if you trust the image", at = At(entry))]
    Limit {
        /// What is limited, in words, with the unit.
        what: &'static str,
        /// The field of [`Limits`](super::Limits).
        field: &'static str,
        /// The limit.
        limit: u64,
        /// The entry at which it happened; empty where there is none.
        entry: String,
    },
}

struct At<'a>(&'a str);

impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " at entry {:?}", self.0)
        }
    }
}

/// Why one archive entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The name has a `..` component.
    #[error("its name climbs with `..`; layers must stay inside the root")]
    Traversal,
    /// The name is empty.
    #[error("its name is empty")]
    EmptyName,
    /// The name has a NUL byte.
    #[error("its name has a NUL byte")]
    NulInName,
    /// A component is longer than 255 bytes.
    #[error("a name component is {0} bytes long; file systems hold 255")]
    NameTooLong(usize),
    /// A whiteout names nothing, or a whiteout is used as a directory.
    #[error("it is a malformed whiteout")]
    Whiteout,
    /// The root must be a directory.
    #[error("it replaces the root directory with something else")]
    RootType,
    /// A hard link's target climbs with `..`.
    #[error("its hard-link target {0:?} leaves the root")]
    LinkEscapes(String),
    /// A hard link's target does not exist.
    #[error("its hard-link target {0:?} does not exist in this or an earlier layer")]
    LinkMissing(String),
    /// A hard link's target is a directory.
    #[error("its hard-link target {0:?} is a directory")]
    LinkToDirectory(String),
    /// A hard link to itself.
    #[error("it is a hard link to itself")]
    LinkToItself,
    /// More than 65000 names for one file.
    #[error("its target already has 65000 names, the most ext4 holds")]
    TooManyLinks,
    /// A parent is a file.
    #[error("its parent {0:?} is not a directory")]
    ParentNotDirectory(String),
    /// Too many symbolic links on the way to the parent.
    #[error("its parent path goes through more than 40 symbolic links (a loop?)")]
    SymlinkLoop,
    /// A type this reader does not know.
    #[error("its tar type {:?} is not supported; nothing is skipped silently", *.0 as char)]
    Type(u8),
    /// Device numbers beyond 12 and 20 bits.
    #[error("its device number {major}:{minor} is out of range (major 4095, minor 1048575)")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// Owner beyond 32 bits.
    #[error("its owner {0} is not a 32-bit user or group id")]
    Owner(i128),
    /// A symbolic link's target is empty, too long, or has a NUL byte.
    #[error("its symbolic-link target is empty, longer than 2047 bytes, or has a NUL byte")]
    SymlinkTarget,
    /// A bad extended attribute.
    #[error("extended attribute {name:?}: {reason}")]
    Xattr {
        /// The attribute's full name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A bad sparse map.
    #[error("bad sparse map: {0}")]
    Sparse(&'static str),
    /// The size is negative or beyond what ext4 holds.
    #[error("its size is impossible: {0}")]
    Size(&'static str),
}

impl From<TarFault> for LayerFault {
    fn from(fault: TarFault) -> Self {
        match fault {
            TarFault::Read(error) => Self::Read(error),
            TarFault::Truncated { offset, what } => Self::Truncated { offset, what },
            TarFault::Header { offset, reason } => Self::Header { offset, reason },
            TarFault::Entry { path, fault } => Self::entry(&path, fault.into()),
            TarFault::Limit {
                what,
                field,
                limit,
                path,
            } => Self::Limit {
                what,
                field,
                limit,
                entry: show(&path),
            },
        }
    }
}

impl From<tar::EntryFault> for EntryFault {
    fn from(fault: tar::EntryFault) -> Self {
        match fault {
            tar::EntryFault::Type(kind) => Self::Type(kind),
            tar::EntryFault::Device { major, minor } => Self::Device { major, minor },
            tar::EntryFault::Owner(id) => Self::Owner(id),
            tar::EntryFault::Sparse(why) => Self::Sparse(why),
            tar::EntryFault::Size(why) => Self::Size(why),
        }
    }
}

impl LayerFault {
    pub(crate) fn entry(name: &[u8], fault: EntryFault) -> Self {
        LayerFault::Entry {
            name: show(name),
            fault,
        }
    }
}
