//! What a supervision tells: its steps, and how it ended.

use microagent_protocol::{EndCause, State, WorkspaceName, supervisor::ErrorReport};
use serde::Serialize;

use super::{keeper::SuperviseEnd, policy::RestartPolicy};
use crate::workspaces::Started;

/// A step of a supervision.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SuperviseEvent {
    /// It is up already and watched from here on.
    Found {
        /// Its state.
        state: State,
    },
    /// It is started; `restart` counts from 1, and is 0 for the first start.
    Starting {
        /// Which restart this is.
        restart: u32,
    },
    /// Its guest is ready.
    Started(Started),
    /// It could not be started.
    StartFailed {
        /// Why.
        error: ErrorReport,
    },
    /// A probe failed.
    Unwell {
        /// How many failed one after the other.
        failures: u32,
        /// Why this one did.
        reason: String,
    },
    /// A probe succeeded after others had failed.
    Well,
    /// Its machine ended.
    Ended {
        /// Its state.
        state: State,
        /// Why.
        cause: Option<EndCause>,
    },
    /// It will be started again after a pause.
    Waiting {
        /// The pause, in milliseconds.
        ms: u64,
    },
    /// The caller asked for the end: it is being halted.
    Halting,
}

/// How a supervision ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SuperviseReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Why it ended.
    pub end: SuperviseEnd,
    /// The policy it went by in the end.
    pub restart: RestartPolicy,
    /// How often the workspace was started again.
    pub restarts: u32,
    /// Its state now; `None` if it was removed.
    pub state: Option<State>,
}
