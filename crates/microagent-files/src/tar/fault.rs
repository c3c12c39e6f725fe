//! What can be wrong with a tar stream.

use std::io;

use crate::show;

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// Its bytes could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It ended in the middle of something.
    #[error("it ends at byte {offset}, in the middle of {what}")]
    Truncated {
        /// Offset in the stream.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// A header is not a tar header, or its extension records are malformed.
    #[error("bad tar header at byte {offset}: {reason}")]
    Header {
        /// Offset of the header in the stream.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// One entry asks for something no file can have.
    #[error("entry {:?}: {fault}", show(.path))]
    Entry {
        /// The entry's name as in the archive.
        path: Vec<u8>,
        /// Why it is refused.
        fault: EntryFault,
    },
    /// One of the [limits](super::TarLimits) was exceeded.
    #[error("it has more than {limit} {what} at entry {:?}", show(.path))]
    Limit {
        /// What is limited, in words, with the unit.
        what: &'static str,
        /// The field of the limits.
        field: &'static str,
        /// The limit.
        limit: u64,
        /// The entry at which it happened; empty where there is none.
        path: Vec<u8>,
    },
}

impl TarFault {
    pub(crate) fn entry(path: &[u8], fault: EntryFault) -> Self {
        Self::Entry {
            path: path.to_vec(),
            fault,
        }
    }
}

/// Why one entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// A type this reader does not know.
    #[error("its tar type {:?} is not supported", *.0 as char)]
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
    /// A bad sparse map.
    #[error("bad sparse map: {0}")]
    Sparse(&'static str),
    /// The size is negative or too large.
    #[error("its size is impossible: {0}")]
    Size(&'static str),
}
