//! How a workspace is: everything that `status` shows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use microagent_host::fs::allocated_bytes;
use microagent_protocol::{
    Backend, BackendChoice, Confinement, ExtraDisk, MediationRoute, ProcessIdentity, Readiness,
    ReadinessReport, ReadinessSignal, State, Timestamp, WorkspaceName,
    supervisor::{Event, EventKind, WorkloadResult},
};
use serde::Serialize;

use super::{
    NetworkStatus, Workspace, history, launch,
    verify::{self, Verification, Verify},
};
use crate::{
    artifacts::ArtifactChannels,
    directories::SCRATCH,
    error::{IoContext, Result},
    profile::Resources,
    result::{ImageInfo, KernelInfo},
    supervise::{HealthCheck, RestartPolicy},
};

/// Everything there is to know of a workspace.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WorkspaceStatus {
    /// Its name.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// The last thing that happened to it.
    pub event: Option<Event>,
    /// Where it is.
    pub directory: PathBuf,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its image.
    pub image: ImageInfo,
    /// Its kernel.
    pub kernel: KernelInfo,
    /// What runs it, or ran it last.
    pub backend: Option<Backend>,
    /// What was asked to run it.
    pub backend_choice: BackendChoice,
    /// What its machine is given.
    pub resources: Resources,
    /// What runs at each start; empty if nothing does.
    pub command: Vec<String>,
    /// Whether its setup commands are still to be run.
    pub setup_pending: bool,
    /// When `supervise` starts it again.
    pub restart: RestartPolicy,
    /// What tells `supervise` that it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Whether it still is what was recorded.
    pub verification: Verification,
    /// What it is ready for, signal by signal.
    pub readiness: ReadinessReport,
    /// How it is connected.
    pub network: NetworkStatus,
    /// Its ways to servers of the host.
    pub mediation: Vec<MediationRoute>,
    /// Its disks beside its own.
    pub disks: Vec<ExtraDisk>,
    /// How its workload ended, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<WorkloadResult>,
    /// What was put in as a bundle, and what it declares to be taken out.
    pub artifacts: ArtifactChannels,
    /// What it takes on the host's disk.
    pub disk_use: DiskUse,
    /// What was seen to hold its monitor back, while it is live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
    /// Its processes on the host, while it is live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
}

/// What a workspace takes on the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// What it may write, in MiB.
    pub size_mib: u32,
    /// What its scratch disk takes, in bytes.
    pub scratch_bytes: u64,
    /// What its whole directory takes, in bytes.
    pub total_bytes: u64,
}

/// The processes of a live workspace.
#[derive(Clone, Debug, Serialize)]
pub struct Processes {
    /// Its supervisor.
    pub supervisor: ProcessIdentity,
    /// Its virtual machine monitor.
    pub vmm: Option<ProcessIdentity>,
}

impl Workspace<'_> {
    /// Everything there is to know of it. A machine that is gone without a record is recorded first.
    ///
    /// # Errors
    /// When its own files cannot be read.
    pub fn status(&self, verify: Verify) -> Result<WorkspaceStatus> {
        let (state, live) = self.live_status()?;
        let history = history::read(&self.directory)?;
        let asked = live.as_ref().map(|status| (status.sequence, status.state));
        let state = settled(state, asked, history.events.last());
        let live = live.filter(|_| state.is_live());
        let result = self.result()?;
        let manifest = &self.manifest;
        let readiness = live.as_ref().map_or_else(
            || at_rest(result.as_ref()),
            |status| status.readiness.clone(),
        );
        Ok(WorkspaceStatus {
            workspace: manifest.name.clone(),
            state,
            backend: last_backend(&history.events),
            event: history.events.last().cloned(),
            directory: self.directory.clone(),
            created_at: manifest.created_at,
            image: manifest.image.clone(),
            kernel: manifest.kernel.clone(),
            backend_choice: manifest.backend,
            resources: manifest.resources,
            command: manifest
                .workload
                .as_ref()
                .map(|workload| workload.argv.clone())
                .unwrap_or_default(),
            setup_pending: launch::setup_is_due(manifest, &self.directory),
            restart: manifest.restart,
            health: manifest.health.clone(),
            verification: verify::verify(self.config, manifest, verify),
            readiness,
            network: NetworkStatus::of(manifest, live.as_ref()),
            mediation: manifest.mediation.clone(),
            disks: manifest.disks.clone(),
            result,
            artifacts: ArtifactChannels::of(manifest, &self.directory),
            disk_use: disk_use(&self.directory, manifest.resources)?,
            confinement: live.as_ref().and_then(|status| status.confinement.clone()),
            processes: live.map(|status| Processes {
                supervisor: status.supervisor,
                vmm: status.vmm,
            }),
        })
    }
}

/// The state that goes with the `last` event, which may have come after its supervisor was `asked` for the number
/// of the last one and the state, or did not answer, and so after what was `recorded`.
fn settled(recorded: State, asked: Option<(u64, State)>, last: Option<&Event>) -> State {
    match (asked, last) {
        (Some((sequence, _)), Some(event)) if event.sequence > sequence => event.state,
        (Some((_, state)), _) => state,
        (None, Some(event)) if !event.state.is_live() => event.state,
        (None, _) => recorded,
    }
}

/// A workspace without a machine is ready for nothing but to show what it did.
fn at_rest(result: Option<&WorkloadResult>) -> ReadinessReport {
    ReadinessSignal::ALL
        .into_iter()
        .map(|signal| {
            let readiness = match (signal, result) {
                (ReadinessSignal::ResultReady, Some(result)) => Readiness {
                    ready: true,
                    observed_at: Some(result.exited_at),
                    detail: None,
                    error: None,
                },
                _ => Readiness::default(),
            };
            (signal, readiness)
        })
        .collect()
}

/// What ran the last machine of which these are the events.
pub(crate) fn last_backend(events: &[Event]) -> Option<Backend> {
    events.iter().rev().find_map(|event| match event.kind {
        EventKind::Starting { backend, .. } => Some(backend),
        _ => None,
    })
}

fn disk_use(directory: &Path, resources: Resources) -> Result<DiskUse> {
    let mut total = 0;
    for entry in fs::read_dir(directory).context("list", directory)? {
        let entry = entry.context("list", directory)?;
        // What is removed meanwhile takes nothing.
        total += entry
            .metadata()
            .map_or(0, |metadata| allocated_bytes(&metadata));
    }
    Ok(DiskUse {
        size_mib: resources.size_mib.0,
        scratch_bytes: fs::metadata(directory.join(SCRATCH))
            .map_or(0, |metadata| allocated_bytes(&metadata)),
        total_bytes: total,
    })
}

#[cfg(test)]
mod tests {
    use microagent_protocol::EndCause;

    use super::*;

    #[test]
    fn a_machine_that_ends_while_it_is_looked_at_has_the_state_of_its_end() {
        let event = |sequence, state| Event {
            sequence,
            at: std::time::SystemTime::UNIX_EPOCH.into(),
            state,
            kind: EventKind::Ended {
                cause: EndCause::GuestPanicked,
                detail: None,
                ms: 1,
            },
        };
        let running = Some((4, State::Running));
        let end = event(5, State::Failed);
        assert_eq!(settled(State::Running, running, Some(&end)), State::Failed);
        assert_eq!(settled(State::Running, None, Some(&end)), State::Failed);
        // It is asked before it has recorded its start, and the end is that of the one before.
        let starting = Some((5, State::Starting));
        assert_eq!(
            settled(State::Failed, starting, Some(&end)),
            State::Starting
        );
        // Nobody could record the loss.
        let lost = event(4, State::Running);
        assert_eq!(settled(State::Failed, None, Some(&lost)), State::Failed);
        assert_eq!(settled(State::Prepared, None, None), State::Prepared);
    }
}
