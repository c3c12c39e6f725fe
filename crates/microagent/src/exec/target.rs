//! The workspace in which something is done: where its supervisor is, and what its processes
//! start with.

use std::{path::PathBuf, time::Duration};

use microagent_protocol::EnvVar;

/// A workspace that runs.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// Its supervisor's socket.
    pub(crate) socket: PathBuf,
    /// The environment of its processes.
    pub(crate) env: Vec<EnvVar>,
    /// Where they start.
    pub(crate) cwd: Option<String>,
    /// Who they run as.
    pub(crate) user: Option<String>,
    /// How long it may take to be ready.
    pub(crate) ready_limit: Duration,
    /// The most bytes of each output stream kept in a result.
    pub(crate) capture_limit: u32,
}
