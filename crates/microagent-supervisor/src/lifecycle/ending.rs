//! How a machine ends: why, how soon, and in which state.

use std::time::Duration;

use microagent_protocol::{EndCause, ExitStatus, State, supervisor::EventKind};

use super::{Action, ConsoleVerdict, Lifecycle, Timer, Workload};

/// How long syncing, unmounting and powering off may take beyond the grace.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);

/// How long a guest whose time is up may take to write out what its programs wrote.
pub(super) const LAST_SYNC_LIMIT: Duration = Duration::from_secs(5);

/// Asks longer than this are shortened: nobody waits a day for a halt.
const MAX_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) cause: EndCause,
    pub(super) detail: Option<String>,
    /// Whether somebody asked for less than a clean end.
    pub(super) forced: bool,
}

impl Lifecycle {
    /// The first cause stands; later ones only make the end come sooner.
    pub(super) fn because(&mut self, cause: EndCause, detail: Option<String>) {
        if self.ending.is_none() {
            self.ending = Some(Ending {
                cause,
                detail,
                forced: false,
            });
        }
    }

    pub(super) fn end_now(
        &mut self,
        cause: EndCause,
        detail: Option<String>,
        out: &mut Vec<Action>,
    ) {
        self.because(cause, detail);
        if let Some(ending) = &mut self.ending {
            ending.forced = true;
        }
        if self.machine {
            out.push(Action::Kill);
        }
    }

    pub(super) fn asked_to_end(&mut self, grace_ms: u64, forced: bool, out: &mut Vec<Action>) {
        let quarantined = self.state == State::Quarantined;
        self.because(EndCause::Requested, None);
        if let Some(ending) = &mut self.ending {
            ending.forced |= forced;
        }
        match self.state {
            State::Running | State::Paused => self.thaw_and_shut_down(grace_ms, out),
            // A guest that is not ready has nothing to lose; a quarantined one is not to run again.
            _ => {
                if let Some(ending) = &mut self.ending {
                    ending.forced |= !quarantined;
                }
                self.clean |= quarantined;
                if self.machine {
                    out.push(Action::Kill);
                }
            }
        }
    }

    pub(super) fn thaw_and_shut_down(&mut self, grace_ms: u64, out: &mut Vec<Action>) {
        if self.state == State::Paused {
            out.push(Action::Thaw);
            self.moved(State::Running, EventKind::Resumed, out);
        }
        if self.state != State::Running {
            return;
        }
        let grace = Duration::from_millis(grace_ms).min(MAX_GRACE);
        out.push(Action::Shutdown {
            grace_ms: grace.as_millis() as u64,
        });
        out.push(Action::Arm(Timer::Shutdown, grace + POWER_OFF_LIMIT));
    }

    pub(super) fn going_down(&mut self, requested: bool, clean: bool, out: &mut Vec<Action>) {
        self.clean = clean;
        // The workload that a power-off from inside took with it did not fail.
        if !requested
            && let Workload::Ended(report) = &self.workload
            && taken_by_signal(&report.status)
            && let Some(ending) = &mut self.ending
            && ending.cause == EndCause::WorkloadFinished
        {
            ending.cause = EndCause::GuestPoweredOff;
        }
        self.because(EndCause::GuestPoweredOff, None);
        let limit = match self.cause() {
            Some(EndCause::TimedOut) => LAST_SYNC_LIMIT,
            _ => POWER_OFF_LIMIT,
        };
        out.push(Action::Arm(Timer::Shutdown, limit));
    }

    /// Nothing in it runs any longer, but what was written reaches the disks, where artifacts are
    /// read from. A guest that is frozen is not thawed for that.
    pub(super) fn time_is_up(&mut self, out: &mut Vec<Action>) {
        if self.state != State::Running {
            return self.end_now(EndCause::TimedOut, None, out);
        }
        self.because(EndCause::TimedOut, None);
        if let Some(ending) = &mut self.ending {
            ending.forced = true;
        }
        out.push(Action::Shutdown { grace_ms: 0 });
        out.push(Action::Arm(Timer::Shutdown, LAST_SYNC_LIMIT));
    }

    pub(super) fn vmm_exited(
        &mut self,
        exit: &str,
        by_guest: bool,
        console: ConsoleVerdict,
        out: &mut Vec<Action>,
    ) {
        self.machine = false;
        if self.ending.is_none() && self.state == State::Starting {
            let reason = if console.panicked {
                format!("the guest's kernel panicked before the guest was ready ({exit})")
            } else {
                format!("the VMM ended before the guest was ready ({exit})")
            };
            self.boot_failed(reason, true, out);
            return;
        }
        if self.ending.is_none() {
            let (cause, detail) = if console.out_of_memory {
                (EndCause::OutOfMemory, None)
            } else if console.panicked {
                (EndCause::GuestPanicked, None)
            } else if by_guest {
                // Past its agent, which would have written everything first and said so.
                (EndCause::GuestPoweredOff, None)
            } else {
                (EndCause::VmmDied, Some(format!("the VMM ended: {exit}")))
            };
            self.because(cause, detail);
        }
        self.finish(out);
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Action>) {
        let ending = self.ending.clone().unwrap_or(Ending {
            cause: EndCause::VmmDied,
            detail: None,
            forced: true,
        });
        let state = self.end_state(&ending);
        self.state = state;
        self.finished = true;
        out.push(Action::Finish {
            state,
            cause: ending.cause,
            detail: ending.detail,
            with_console: matches!(
                ending.cause,
                EndCause::BootFailed
                    | EndCause::GuestPanicked
                    | EndCause::VmmDied
                    | EndCause::OutOfMemory
            ),
        });
    }

    fn end_state(&self, ending: &Ending) -> State {
        let calm = if self.clean && !ending.forced {
            State::Halted
        } else {
            State::Stopped
        };
        let wanted = match ending.cause {
            EndCause::WorkloadFinished => match &self.workload {
                Workload::Ended(report) if report.status.code() != 0 => State::Failed,
                _ => calm,
            },
            EndCause::GuestPoweredOff | EndCause::Requested => calm,
            EndCause::Killed | EndCause::OwnerGone => State::Stopped,
            EndCause::GuestPanicked
            | EndCause::BootFailed
            | EndCause::VmmDied
            | EndCause::Unhealthy
            | EndCause::TimedOut
            | EndCause::OutOfMemory => State::Failed,
        };
        if self.state.may_become(wanted) {
            wanted
        } else {
            // Every live state may become stopped.
            State::Stopped
        }
    }
}

fn taken_by_signal(status: &ExitStatus) -> bool {
    matches!(status, ExitStatus::Signaled { .. }) || matches!(status.code(), 137 | 143)
}
