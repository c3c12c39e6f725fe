//! The one error type of this crate.

use std::{io, path::PathBuf, time::Duration};

/// Why a machine could not be launched or controlled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is not there.
    #[error("{program} is not {}; {remedy}", place(searched))]
    ProgramMissing {
        /// The program.
        program: String,
        /// Where it was looked for: its own path, or a `PATH` value.
        searched: String,
        /// What to install.
        remedy: String,
    },
    /// The VMM could not be started or ended at once.
    #[error("{program} did not start: {reason}")]
    VmmStart {
        /// The VMM.
        program: PathBuf,
        /// Its own words.
        reason: String,
    },
    /// The VMM refused a control command, or did not answer in time.
    #[error("the VMM did not {action}: {reason}")]
    Control {
        /// What it was to do.
        action: &'static str,
        /// What it said, or how long it was waited for.
        reason: String,
    },
    /// It did not happen in time.
    #[error("{what} did not happen within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// It was to be confined in every way, and cannot be.
    #[error(
        "the confinement that is required is not all there: {missing}; MICROAGENT_CONFINEMENT=auto starts it with what this host can give"
    )]
    Confinement {
        /// What is missing, and why.
        missing: String,
    },
    /// The specification is wrong.
    #[error("the machine cannot be made: {0}")]
    Invalid(String),
    /// This host or driver cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Apple's framework is not asked for such a machine.
    #[cfg(any(target_os = "macos", all(test, unix)))]
    #[error(transparent)]
    Refused(#[from] crate::apple_vz::Refusal),
    /// Its vsock device could not be made.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Vsock(#[from] crate::vsock::VsockError),
    /// A file, socket or process failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done to what.
        context: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A place that was looked at, without the many of a `PATH`.
fn place(searched: &str) -> String {
    let mut places = std::env::split_paths(searched);
    match (places.next(), places.next()) {
        (Some(one), None) => format!("at {}", one.display()),
        _ => "on the PATH".to_owned(),
    }
}
