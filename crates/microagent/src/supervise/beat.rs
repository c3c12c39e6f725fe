//! A machine's health: a probe when one is due, and what comes of its outcome.

use std::{
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::{State, supervisor::Command};

use super::{
    health::HealthCheck,
    keeper::{Condition, Pulse},
    probe::Probe,
    step::SuperviseEvent,
    watch::Happening,
};
use crate::{
    error::{Error, Result},
    workspaces::{Workspace, machine},
};

/// How long a machine whose probes failed may take to be gone.
const CONDEMN_LIMIT: Duration = Duration::from_secs(30);

/// The probes of one machine: when the next one is due, and whether one is under way.
pub(super) struct Beat {
    check: HealthCheck,
    pulse: Pulse,
    begun: Instant,
    probing: bool,
    condemned: bool,
}

impl Beat {
    pub(super) fn new(check: HealthCheck, begun: Instant) -> Self {
        Self {
            pulse: Pulse::new(&check),
            check,
            begun,
            probing: false,
            condemned: false,
        }
    }

    /// When a probe is to be made.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.probing && !self.condemned).then(|| self.begun + self.pulse.next())
    }

    /// Makes a probe, in a thread of its own.
    pub(super) fn probe(
        &mut self,
        workspace: &Workspace<'_>,
        state: State,
        watch: u64,
        sender: &Sender<Happening>,
    ) {
        if state != State::Running {
            self.pulse.skipped(self.begun.elapsed());
            return;
        }
        self.probing = true;
        let probe = Probe::new(workspace, &self.check);
        let sender = sender.clone();
        thread::spawn(move || {
            // Nobody listens any more when the supervision ended meanwhile.
            let _ = sender.send(Happening::Probed(watch, probe.run()));
        });
    }

    /// Takes note of a probe's outcome, and ends a machine that is lost.
    pub(super) fn probed(
        &mut self,
        workspace: &Workspace<'_>,
        outcome: Result<(), String>,
        state: State,
        tell: &mut impl FnMut(SuperviseEvent),
    ) -> Result<()> {
        self.probing = false;
        let now = self.begun.elapsed();
        if state != State::Running {
            self.pulse.skipped(now);
            return Ok(());
        }
        let failed_before = self.pulse.failures() > 0;
        let condition = self.pulse.probed(outcome.is_ok(), now);
        let reason = outcome.err().unwrap_or_default();
        match condition {
            Condition::Well if failed_before => tell(SuperviseEvent::Well),
            Condition::Well => {}
            Condition::Unwell(failures) => tell(SuperviseEvent::Unwell { failures, reason }),
            Condition::Lost(failures) => {
                self.condemned = true;
                let detail = match failures {
                    1 => format!("its health probe failed: {reason}"),
                    _ => format!("{failures} health probes failed, the last one: {reason}"),
                };
                tell(SuperviseEvent::Unwell { failures, reason });
                condemn(workspace, detail)?;
            }
        }
        Ok(())
    }
}

/// Ends a machine that is not well; it counts as failed.
fn condemn(workspace: &Workspace<'_>, reason: String) -> Result<()> {
    let asked = workspace
        .connect()
        .and_then(|control| control.status(Command::Condemn { reason }, CONDEMN_LIMIT));
    if machine::wait_gone(workspace.directory(), CONDEMN_LIMIT) {
        return Ok(());
    }
    asked?;
    Err(Error::NotEnding {
        name: workspace.name().to_string(),
        limit: CONDEMN_LIMIT,
    })
}
