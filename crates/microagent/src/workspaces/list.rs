//! Every workspace, a row each.

use std::{io, path::Path};

use microagent_protocol::{
    Backend, NetworkMode, State, Timestamp, WorkspaceName,
    supervisor::{Event, EventKind},
};
use serde::Serialize;

use super::{history, manifest::Manifest};
use crate::{
    config::Config,
    directories,
    error::{Error, Result},
    supervise::RestartPolicy,
};

/// A workspace in a list.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkspaceSummary {
    /// Its name.
    pub name: WorkspaceName,
    /// Its state.
    pub state: State,
    /// Its image's reference.
    pub image: String,
    /// What runs it, or ran it last.
    pub backend: Option<Backend>,
    /// How it is connected.
    pub network: Option<NetworkMode>,
    /// When `supervise` starts it again.
    pub restart: RestartPolicy,
    /// Whether it goes with the run that made it.
    pub ephemeral: bool,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When something happened to it last.
    pub observed_at: Option<Timestamp>,
    /// What is wrong with its files, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

pub(super) fn list(config: &Config) -> Result<Vec<WorkspaceSummary>> {
    let named = directories::named(config)?.into_iter();
    Ok(named
        .filter_map(|(name, path)| summary(name, &path))
        .collect())
}

/// `None` for what is being made, or was removed meanwhile.
fn summary(name: WorkspaceName, directory: &Path) -> Option<WorkspaceSummary> {
    let state = history::state(directory);
    if let Ok((_, true)) = state {
        history::bury(directory);
    }
    let last = history::last(directory).ok().flatten();
    let observed_at = last.as_ref().map(|event| event.at);
    let state_now = state.as_ref().map_or(State::Failed, |(state, _)| *state);
    match Manifest::read(directory) {
        Ok(manifest) => Some(WorkspaceSummary {
            name,
            state: state_now,
            image: manifest.image.reference,
            backend: backend(directory, last.as_ref()),
            network: Some(manifest.network),
            restart: manifest.restart,
            ephemeral: manifest.ephemeral,
            created_at: Some(manifest.created_at),
            observed_at,
            damage: state.err().map(|error| error.to_string()),
        }),
        Err(Error::Io { source, .. })
            if source.kind() == io::ErrorKind::NotFound && last.is_none() =>
        {
            None
        }
        Err(error) => Some(WorkspaceSummary {
            name,
            state: state_now,
            image: String::new(),
            backend: None,
            network: None,
            restart: RestartPolicy::default(),
            ephemeral: false,
            created_at: None,
            observed_at,
            damage: Some(error.to_string()),
        }),
    }
}

/// What ran it last: a boot says so in its first event.
fn backend(directory: &Path, last: Option<&Event>) -> Option<Backend> {
    last?;
    let history = history::read(directory).ok()?;
    history
        .events
        .iter()
        .rev()
        .find_map(|event| match event.kind {
            EventKind::Starting { backend, .. } => Some(backend),
            _ => None,
        })
}
