//! What can go wrong in a supervisor, and how it crosses the process boundary.

use std::{io, net::SocketAddr, path::PathBuf};

use microagent_protocol::supervisor::{ErrorKind, ErrorReport};

use crate::wiring::busy_remedy;

/// Why a supervisor could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The launch specification is wrong.
    #[error("The launch is refused: {field} {reason}.")]
    BadSpec {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or directory could not be used.
    #[error("Cannot {action} {}: {source}.", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something that is no file.
    #[error("Cannot {action}: {source}.")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A published port cannot be bound.
    #[error("{}", port_unusable(*address, source))]
    PortUnusable {
        /// Where it was to listen.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// Published ports are to move that are not those of the machine.
    #[error(
        "These are not the machine's published ports: only their addresses can change while it runs."
    )]
    OtherPorts,
    /// The machine has no connections any more.
    #[error("The machine is cut off from its host, and its ports with it.")]
    CutOff,
    /// A disk is attached to another machine in a way that does not go with this one.
    #[error(
        "The disk {name} ({}) cannot be attached {}: {holder} has it.",
        path.display(),
        if *read_only { "ro" } else { "rw" }
    )]
    DiskBusy {
        /// Its name.
        name: String,
        /// Its image file.
        path: PathBuf,
        /// Who has it.
        holder: String,
        /// Whether it was only to be read.
        read_only: bool,
    },
    /// A required mediation target does not answer.
    #[error("The required mediation {route} cannot be reached: {source}.")]
    MediationUnreachable {
        /// The route.
        route: String,
        /// What came of the attempt.
        source: io::Error,
    },
    /// Another supervisor has a machine of this workspace.
    #[error("A machine of the workspace in {} runs already.", directory.display())]
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
            Self::PortUnusable { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                ErrorReport::new(ErrorKind::Conflict, self.to_string())
                    .remedy("Choose another port, or 0 for a free one.")
            }
            Self::PortUnusable { .. } => ErrorReport::new(ErrorKind::Invalid, self.to_string())
                .remedy("Choose another address or port."),
            Self::OtherPorts => ErrorReport::new(ErrorKind::Invalid, self.to_string())
                .remedy("Name each of them in its order, or publish others at its next start."),
            Self::CutOff => ErrorReport::new(ErrorKind::Conflict, self.to_string()),
            Self::DiskBusy { read_only, .. } => {
                ErrorReport::new(ErrorKind::Conflict, self.to_string())
                    .remedy(busy_remedy(*read_only))
            }
            Self::MediationUnreachable { .. } => {
                ErrorReport::new(ErrorKind::Transient, self.to_string()).remedy(
                    "Start the server it leads to, or let the machine run without it by making \
                     the route optional.",
                )
            }
            Self::Running { .. } => ErrorReport::new(ErrorKind::Conflict, self.to_string())
                .remedy("End it first, or use it."),
            Self::Backend(report) => (**report).clone(),
        }
    }
}

fn port_unusable(address: SocketAddr, source: &io::Error) -> String {
    let (ip, port) = (address.ip(), address.port());
    match source.kind() {
        io::ErrorKind::AddrInUse => format!("Port {port} of {ip} is in use."),
        io::ErrorKind::AddrNotAvailable => format!("{ip} is no address of this host."),
        io::ErrorKind::PermissionDenied => {
            format!("Port {port} of {ip} may not be bound by this user.")
        }
        _ => format!("Port {port} of {ip} cannot be bound: {source}."),
    }
}
