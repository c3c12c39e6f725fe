//! What can go wrong in the agent, with enough context to act on it from the host.

use std::{fmt::Display, io, path::PathBuf};

use microagent_protocol::{FrameError, StartFailure};

/// Everything the agent reports.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried, naming its object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A disk never appeared.
    #[error(
        "no disk with the serial {serial:?} appeared within {seconds} s (disks here: {present}); check that the machine has it and that its driver is in the initramfs"
    )]
    NoDisk {
        /// The virtio-blk serial.
        serial: String,
        /// How long the agent waited.
        seconds: u64,
        /// The disks that are there.
        present: String,
    },
    /// An extra disk could not be mounted.
    #[error("the disk {name} for {mountpoint}: {source}{}", hint(source))]
    Disk {
        /// Its name.
        name: String,
        /// Where it was to be.
        mountpoint: String,
        /// Why not.
        source: Box<Error>,
    },
    /// The network interface never appeared.
    #[error(
        "no network interface appeared within {seconds} s; check that the machine has one and that its driver is in the initramfs"
    )]
    NoInterface {
        /// How long the agent waited.
        seconds: u64,
    },
    /// A text from the host or the image is malformed.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// What it is.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the image is too long to be read whole.
    #[error("{path} is longer than {limit} bytes or no regular file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The most the agent reads.
        limit: usize,
    },
    /// A connection to the host failed.
    #[error("the connection to the host failed: {0}")]
    Frame(#[from] FrameError),
    /// The host went away.
    #[error("the host closed the connection")]
    HostGone,
    /// The connection was reset under both ends.
    #[error("the connection to the host was reset")]
    LinkReset,
    /// A process could not be started.
    #[error("{message}")]
    Start {
        /// Why, for a program.
        reason: StartFailure,
        /// Why, for a person.
        message: String,
    },
}

impl Error {
    /// A process that could not be started.
    pub(crate) fn start(reason: StartFailure, message: impl Into<String>) -> Self {
        Self::Start {
            reason,
            message: message.into(),
        }
    }
}

/// What may be behind a disk that cannot be mounted, where the kernel's answer hides it.
fn hint(error: &Error) -> &'static str {
    match error {
        Error::System { source, .. } if source.raw_os_error() == Some(libc::EROFS) => {
            "; it was not unmounted cleanly: attach it rw once, so that its journal is played back"
        }
        Error::System { source, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
            "; there is no ext4 file system on it"
        }
        _ => "",
    }
}

/// Says what a failed system call was for.
pub(crate) trait Context<T> {
    /// Adds `what` to the error.
    fn context(self, what: impl Display) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Display) -> Result<T, Error> {
        self.map_err(|source| Error::System {
            what: what.to_string(),
            source: source.into(),
        })
    }
}
