//! Steering a workspace's machine: ending it, freezing it, containing it.

use std::time::Duration;

use microagent_protocol::{EndCause, State, WorkspaceName, supervisor::Command};
use serde::Serialize;

use super::{Workspace, history, machine};
use crate::{
    error::{Error, Result},
    run::millis,
};

/// How long freezing, thawing and containing may take.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);

/// How long a machine may take to be gone that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What became of a request to steer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ControlReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state now.
    pub state: State,
    /// Whether anything was done: what is asked for may be so already.
    pub changed: bool,
    /// Why its machine ended, if it did by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
}

impl Workspace<'_> {
    /// Shuts it down cleanly: the workload is asked to end by its stop signal and has `grace` for
    /// it, then everything is written, unmounted and powered off. One that is not live stays as
    /// it is.
    ///
    /// # Errors
    /// [`Error::State`] if it is not ready yet, [`Error::NotEnding`] if it does not end; it is then
    /// still live and can be killed.
    pub fn halt(&self, grace: Duration) -> Result<ControlReport> {
        self.end(
            Command::Halt {
                grace_ms: millis(grace),
            },
            grace.saturating_add(self.config.timeouts.shutdown),
        )
    }

    /// Like [`halt`](Self::halt), but a guest that does not end within `grace` is ended by force.
    ///
    /// # Errors
    /// [`Error::NotEnding`] if even that does not end it.
    pub fn stop(&self, grace: Duration) -> Result<ControlReport> {
        self.end(
            Command::Stop {
                grace_ms: millis(grace),
            },
            grace.saturating_add(self.config.timeouts.shutdown),
        )
    }

    /// Ends it at once. Nothing is written any more.
    ///
    /// # Errors
    /// [`Error::NotEnding`] if the system does not end it.
    pub fn kill(&self) -> Result<ControlReport> {
        self.end(Command::Kill, KILL_LIMIT)
    }

    /// Freezes its vCPUs; memory and connections stay.
    ///
    /// # Errors
    /// [`Error::State`] if it does not run.
    pub fn pause(&self) -> Result<ControlReport> {
        self.steer(Command::Pause, State::Paused, "paused")
    }

    /// Thaws its vCPUs and sets its clock.
    ///
    /// # Errors
    /// [`Error::State`] if it is not paused.
    pub fn resume(&self) -> Result<ControlReport> {
        self.steer(Command::Resume, State::Running, "resumed")
    }

    /// Freezes its vCPUs and cuts every connection; memory, disks and history stay as evidence.
    ///
    /// # Errors
    /// [`Error::State`] if it does not run.
    pub fn quarantine(&self) -> Result<ControlReport> {
        self.steer(Command::Quarantine, State::Quarantined, "quarantined")
    }

    fn steer(&self, command: Command, wanted: State, doing: &'static str) -> Result<ControlReport> {
        let before = self.state()?;
        if !before.is_live() {
            return Err(self.in_state(before, doing));
        }
        let status = self.connect()?.status(command, CONTROL_LIMIT)?;
        Ok(ControlReport {
            workspace: self.name().clone(),
            state: status.state,
            changed: before != wanted,
            cause: None,
        })
    }

    fn end(&self, command: Command, limit: Duration) -> Result<ControlReport> {
        if !machine::is_live(&self.directory) {
            return Ok(ControlReport {
                workspace: self.name().clone(),
                state: self.state()?,
                changed: false,
                cause: None,
            });
        }
        let asked = self.connect().and_then(|control| {
            // The supervisor keeps its own deadline; this one is for a supervisor that hangs.
            control.status(command, limit.saturating_add(KILL_LIMIT))
        });
        // A machine that ends meanwhile ends its connections, too.
        let gone = machine::wait_gone(&self.directory, KILL_LIMIT);
        if !gone {
            asked?;
            return Err(Error::NotEnding {
                name: self.name().to_string(),
                limit,
            });
        }
        let state = self.state()?;
        Ok(ControlReport {
            workspace: self.name().clone(),
            state,
            changed: true,
            cause: history::end_cause(&self.directory)?,
        })
    }
}
