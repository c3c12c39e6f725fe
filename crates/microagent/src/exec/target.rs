//! The workspace in which something is done.

use std::{path::PathBuf, time::Duration};

use microagent_protocol::ExecRequest;

use crate::supervisor::client::Control;

/// A workspace that runs.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) directory: PathBuf,
    /// The way to its machine.
    pub(crate) control: Control,
    /// What each of its processes is given.
    pub(crate) session: ExecRequest,
    /// Its shell, where it is not [`microagent_protocol::shell::DEFAULT_SHELL`].
    pub(crate) shell: Option<String>,
    /// How long it may take to be ready.
    pub(crate) ready_limit: Duration,
    /// The most bytes of each output stream kept in a result.
    pub(crate) capture_limit: u32,
}
