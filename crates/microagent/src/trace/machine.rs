//! What a supervisor told, as phases.

use std::time::{Duration, SystemTime};

use microagent_protocol::{
    Timestamp,
    supervisor::{Event, EventKind},
};

use super::MACHINE;

/// The phases of one machine, told as its events come.
#[derive(Debug)]
pub(crate) struct MachinePhases {
    workspace: String,
    vmm: u32,
    /// When the phase before ended.
    mark: Option<Timestamp>,
}

/// A phase that is over.
#[derive(Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) name: &'static str,
    pub(super) from: Timestamp,
    pub(super) took: Duration,
}

impl MachinePhases {
    pub(crate) fn of(workspace: impl std::fmt::Display) -> Self {
        Self {
            workspace: workspace.to_string(),
            vmm: 0,
            mark: None,
        }
    }

    /// Tells what came to an end with `event`.
    pub(crate) fn see(&mut self, event: &Event) {
        let Some(ended) = self.take(event) else {
            return;
        };
        let from = ended.from.0.duration_since(SystemTime::UNIX_EPOCH);
        tracing::debug!(
            target: MACHINE,
            phase = ended.name,
            workspace = self.workspace.as_str(),
            vmm = self.vmm,
            from_us = micros(from.unwrap_or_default()),
            took_us = micros(ended.took),
        );
    }

    pub(super) fn take(&mut self, event: &Event) -> Option<Ended> {
        let name = match &event.kind {
            EventKind::VmmStarted { vmm, ms } => {
                self.vmm = vmm.pid;
                let launch = event.at.0.checked_sub(Duration::from_millis(*ms));
                // After a boot that came to nothing it began with the end of that.
                self.mark = self.mark.or(launch.map(Timestamp));
                "vmm"
            }
            EventKind::BootRetried { .. } => "failed boot",
            EventKind::GuestHello { .. } => "kernel",
            EventKind::GuestReady { .. } => "agent",
            EventKind::WorkloadStarted { .. } => {
                self.mark = Some(event.at);
                return None;
            }
            EventKind::WorkloadExited { .. } => "workload",
            EventKind::Ended { .. } => "teardown",
            _ => return None,
        };
        let from = self.mark.replace(event.at)?;
        let took = event.at.since(from);
        if matches!(event.kind, EventKind::Ended { .. }) {
            self.mark = None;
        }
        Some(Ended { name, from, took })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
