//! Taking a workspace away, whatever state its files are in.

use std::{io, path::Path, time::Duration};

use microagent_protocol::{State, WorkspaceName, supervisor::Command};
use serde::Serialize;

use super::{
    HOLD_LIMIT, history,
    machine::{self, AtRest, MachineRecord},
};
use crate::{
    config::Config,
    directories::{self, Held},
    error::{Error, Result},
    supervisor::client::Control,
};

/// How long a machine may take to be gone that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What became of a request to remove a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RemovedWorkspace {
    /// Its name.
    pub workspace: WorkspaceName,
    /// Whether there was one.
    pub deleted: bool,
}

pub(super) fn remove(
    config: &Config,
    name: &WorkspaceName,
    force: bool,
) -> Result<RemovedWorkspace> {
    let root = config.workspaces_dir();
    let directory = root.join(name.as_str());
    let removed = |deleted| RemovedWorkspace {
        workspace: name.clone(),
        deleted,
    };
    if !directory.is_dir() {
        return Ok(removed(false));
    }
    if machine::is_live(&directory) {
        if !force {
            // A history that cannot be read says nothing against a machine that lives.
            let state = history::state(&directory).map_or(State::Running, |(state, _)| state);
            return Err(Error::State {
                name: name.to_string(),
                state,
                doing: "deleted",
                remedy: format!("End it first with `microagent halt {name}`, or give --force."),
            });
        }
        kill(name, &directory)?;
    }
    let busy = || Error::Busy {
        name: name.to_string(),
    };
    let held = match Held::within(&directory, HOLD_LIMIT) {
        Ok(Some(held)) => held,
        Ok(None) => return Err(busy()),
        // Somebody else was faster.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(removed(false));
        }
        Err(error) => return Err(error),
    };
    let at_rest = match AtRest::keep(&directory) {
        Some(at_rest) => at_rest,
        None if !force => return Err(busy()),
        None => {
            kill(name, &directory)?;
            AtRest::keep(&directory).ok_or_else(busy)?
        }
    };
    if let Some(runtime) = machine::dead_runtime(&directory) {
        directories::remove_runtime(&runtime);
    }
    match directories::discard(&root, &directory) {
        Ok(()) => {
            drop((held, at_rest));
            Ok(removed(true))
        }
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(removed(false))
        }
        Err(error) => Err(error),
    }
}

/// Kills the machine by its supervisor, and the supervisor if it does not answer.
fn kill(name: &WorkspaceName, directory: &Path) -> Result<()> {
    let record = MachineRecord::read(directory);
    if let Some(record) = &record {
        let control = Control::new(name.as_str(), record.socket());
        if let Err(error) = control.status(Command::Kill, KILL_LIMIT) {
            tracing::debug!("the supervisor of {name} was not told to kill: {error}");
            if let Some(supervisor) = &record.supervisor {
                super::machine::kill(supervisor);
            }
        }
    }
    if machine::wait_gone(directory, KILL_LIMIT) {
        return Ok(());
    }
    Err(Error::NotEnding {
        name: name.to_string(),
        limit: KILL_LIMIT,
    })
}
