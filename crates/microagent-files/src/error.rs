//! Why a copy failed, naming the file, the reason and the remedy.

use std::{
    io,
    path::{Path, PathBuf},
};

use microagent_protocol::supervisor::ErrorKind;

use crate::tar::TarFault;

/// A copy that was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    System {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What is to be copied is not there.
    #[error("there is no {}", .path.display())]
    Missing {
        /// What.
        path: PathBuf,
    },
    /// Where it is to go is not there.
    #[error("there is no directory {}; make it first, or ask for missing directories to be made (--parents)", .path.display())]
    NoDirectory {
        /// Where.
        path: PathBuf,
    },
    /// Something of another kind is in the way.
    #[error("{} {reason}", .path.display())]
    Conflict {
        /// What is in the way.
        path: PathBuf,
        /// How.
        reason: &'static str,
    },
    /// A file became shorter while it was read.
    #[error("{} changed while it was copied; copy it again when nobody writes to it", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The tree is too deep or has too many entries.
    #[error("{} {reason}", .path.display())]
    TooMuch {
        /// Where that was found.
        path: PathBuf,
        /// What is too much.
        reason: String,
    },
    /// The stream is not a sound archive.
    #[error("the stream is broken: {0}")]
    Stream(#[from] TarFault),
    /// The stream asks for what must not be.
    #[error("the stream is refused: entry {entry:?} {reason}")]
    Refused {
        /// Its name in the stream.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream could not be written.
    #[error("the stream cannot be sent: {0}")]
    Output(io::Error),
}

impl CopyError {
    pub(crate) fn refused(entry: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused {
            entry: crate::show(entry),
            reason: reason.into(),
        }
    }

    /// What kind of failure it is, for programs.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::NoDirectory { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Changed { .. } => ErrorKind::Transient,
            Self::TooMuch { .. } | Self::Refused { .. } => ErrorKind::Invalid,
            Self::System { .. } | Self::Stream(_) | Self::Output(_) => ErrorKind::Permanent,
        }
    }
}

/// Adds what was being done, and to what.
pub(crate) trait Context<T> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T, CopyError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, doing: &'static str, path: &Path) -> Result<T, CopyError> {
        self.map_err(|source| CopyError::System {
            doing,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}
