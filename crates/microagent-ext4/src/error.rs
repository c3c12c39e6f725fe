//! What can be wrong with a file system.

use std::io;

/// A file system that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read or written.
    #[error("cannot {doing} the disk: {source}")]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not a sound ext4.
    #[error("the file system is damaged: {what}; check it with e2fsck")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// It is an ext4 of a kind that is not known here.
    #[error(
        "the file system uses {what}, which is not understood here; use it in a running machine"
    )]
    Unknown {
        /// Which feature.
        what: String,
    },
    /// It is full.
    #[error("the disk is full: {what} would be needed, {free} are free")]
    Full {
        /// How much of what.
        what: String,
        /// How many are left.
        free: u64,
    },
    /// A change is too large to be made in one step.
    #[error(
        "the change is too large to be made at once ({blocks} blocks where {most} fit); make it in parts"
    )]
    TooLarge {
        /// How large it is.
        blocks: u64,
        /// How large it may be.
        most: u64,
    },
    /// A name, target or attribute cannot be kept.
    #[error("{what}")]
    Impossible {
        /// What and why.
        what: String,
    },
}

impl Error {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Self {
        Self::Unknown { what: what.into() }
    }
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io { doing, source })
    }
}
