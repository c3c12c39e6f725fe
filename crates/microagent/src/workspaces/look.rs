//! What a live machine costs its host, and how it is connected.

use std::time::Duration;

use microagent_protocol::{
    Backend, MachineStats, MediationRoute, NetworkMode, NetworkProvider, PublishedPort, State,
    WorkspaceName,
    guest::GuestNetwork,
    supervisor::{Answer, Command, ErrorKind, Status},
};
use serde::Serialize;

use super::{Workspace, history, manifest::Manifest};
use crate::{
    error::{Error, Result},
    supervisor::client::{Conversation, unexpected},
};

/// How long a supervisor may take to look.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// How a workspace is connected: as it was asked to be, and as it is while it is live.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NetworkReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// What runs it, while it is live.
    pub backend: Option<Backend>,
    /// How it is connected.
    pub network: NetworkStatus,
    /// Its ways to servers of the host.
    pub mediation: Vec<MediationRoute>,
}

/// How a workspace is connected.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// How it was asked to be.
    pub mode: NetworkMode,
    /// The ports it was asked to publish; port 0 of the host is any free one.
    pub ports: Vec<PublishedPort>,
    /// What there is, while it is live.
    pub runtime: Option<NetworkRuntime>,
}

/// How a live workspace is connected.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkRuntime {
    /// The guest's one interface; none where it has only loopback.
    pub interface: Option<GuestNetwork>,
    /// What carries that.
    pub provider: Option<NetworkProvider>,
    /// Its published ports, each with the host's port that was bound.
    pub ports: Vec<PublishedPort>,
}

impl NetworkStatus {
    /// Of what `manifest` says, as far as it is `live`.
    pub(super) fn of(manifest: &Manifest, live: Option<&Status>) -> Self {
        Self {
            mode: manifest.network,
            ports: manifest.publish.clone(),
            runtime: live.map(|status| NetworkRuntime {
                interface: status.network.clone(),
                provider: status.network_provider,
                ports: status.ports.clone(),
            }),
        }
    }
}

/// Samples of one machine, each against the one before.
#[derive(Debug)]
pub struct StatsFollower {
    conversation: Conversation,
}

impl StatsFollower {
    /// A sample; `None` once the machine has ended.
    ///
    /// # Errors
    /// When its supervisor answers something else.
    pub fn sample(&mut self) -> Result<Option<MachineStats>> {
        match self.conversation.ask(Command::Stats, ANSWER_LIMIT) {
            Ok(Answer::Stats(stats)) => Ok(Some(*stats)),
            Ok(_) => Err(unexpected(self.conversation.subject())),
            // It ended, and its supervisor with it.
            Err(Error::SupervisorFailed { .. }) => Ok(None),
            Err(Error::Supervisor(report)) if report.kind == ErrorKind::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Workspace<'_> {
    /// What its machine costs the host, over a short interval.
    ///
    /// # Errors
    /// [`Error::State`] if it has no machine.
    pub fn stats(&self) -> Result<MachineStats> {
        let stats = self.follow_stats()?.sample()?;
        match stats {
            Some(stats) => Ok(stats),
            None => Err(self.in_state(self.state()?, "looked at")),
        }
    }

    /// The same again and again, each over the time since the one before.
    ///
    /// # Errors
    /// [`Error::State`] if it has no machine.
    pub fn follow_stats(&self) -> Result<StatsFollower> {
        let state = self.state()?;
        if !state.is_live() {
            return Err(self.in_state(state, "looked at"));
        }
        Ok(StatsFollower {
            conversation: self.connect()?.conversation()?,
        })
    }

    /// How it is connected.
    ///
    /// # Errors
    /// When its history cannot be read.
    pub fn network(&self) -> Result<NetworkReport> {
        let (recorded, live) = self.live_status()?;
        Ok(NetworkReport {
            workspace: self.name().clone(),
            state: live.as_ref().map_or(recorded, |status| status.state),
            backend: live.as_ref().and_then(|status| status.backend),
            network: NetworkStatus::of(&self.manifest, live.as_ref()),
            mediation: self.manifest.mediation.clone(),
        })
    }

    /// What is recorded, and what its supervisor says while there is one that answers.
    pub(crate) fn live_status(&self) -> Result<(State, Option<Status>)> {
        let (state, lost) = history::state(&self.directory)?;
        if lost {
            history::bury(&self.directory);
        }
        if !state.is_live() || lost {
            return Ok((state, None));
        }
        let asked = self
            .connect()
            .and_then(|control| control.status(Command::Inspect, ANSWER_LIMIT));
        match asked {
            Ok(status) => Ok((state, Some(status))),
            Err(error) => {
                // It ends just now, or is still on its way up.
                tracing::debug!("the supervisor of {} does not answer: {error}", self.name());
                Ok((history::state(&self.directory)?.0, None))
            }
        }
    }
}
