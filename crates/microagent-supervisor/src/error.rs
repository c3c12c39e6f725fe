//! What can go wrong in a supervisor, and how it crosses the process boundary.

use std::{io, path::PathBuf};

use microagent_protocol::supervisor::{ErrorKind, ErrorReport};

/// Why a supervisor could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The launch specification is wrong.
    #[error("the launch is refused: {field} {reason}")]
    BadSpec {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something that is no file.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Another supervisor has a machine of this workspace.
    #[error("a machine of the workspace in {} runs already", directory.display())]
    Running {
        /// The workspace's directory.
        directory: PathBuf,
    },
    /// Choosing or driving a backend failed.
    #[error("{0}")]
    Backend(Box<ErrorReport>),
}

impl Error {
    pub(crate) fn spec(field: &'static str, reason: impl Into<String>) -> Self {
        Self::BadSpec {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// As it is told to another process.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        match self {
            Self::BadSpec { .. } => ErrorReport::new(ErrorKind::Invalid, self.to_string()),
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorReport::new(ErrorKind::NotFound, self.to_string())
            }
            Self::File { .. } | Self::System { .. } => {
                ErrorReport::new(ErrorKind::Permanent, self.to_string())
            }
            Self::Running { .. } => ErrorReport::new(ErrorKind::Conflict, self.to_string())
                .remedy("end it first, or use it"),
            Self::Backend(report) => (**report).clone(),
        }
    }
}
