//! The life of one machine as a pure state machine: inputs go in, actions come out.
//!
//! Everything that happens to a machine is decided here and nowhere else. This
//! module knows no files, sockets, threads or clocks, so all of it is tested
//! without any.

mod ending;
mod vocabulary;

use std::time::Duration;

use microagent_protocol::{EndCause, ExitStatus, State, exec::ExitReport, supervisor::EventKind};

use self::ending::Ending;
pub(crate) use self::vocabulary::{Action, ConsoleVerdict, Input, Timer};

/// How long a workload that finished leaves to what else runs in the guest.
pub(crate) const AFTER_WORKLOAD_GRACE_MS: u64 = 1_000;

/// How long a VMM may live on after its guest let go of the control connection.
const LINK_LOST_LIMIT: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Workload {
    None,
    Running,
    Ended(ExitReport),
}

/// One boot of one workspace.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: State,
    attempt: u32,
    boot_timeout: Duration,
    greeted: bool,
    /// The VMM of this attempt was launched and has not ended.
    machine: bool,
    clean: bool,
    /// Its connections were cut by our own hand.
    cut: bool,
    workload: Workload,
    ending: Option<Ending>,
    finished: bool,
}

impl Lifecycle {
    /// A machine about to be launched, and the first actions.
    pub(crate) fn start(
        boot_timeout: Duration,
        time_limit: Option<Duration>,
    ) -> (Self, Vec<Action>) {
        let life = Self {
            state: State::Starting,
            attempt: 0,
            boot_timeout,
            greeted: false,
            machine: false,
            clean: false,
            cut: false,
            workload: Workload::None,
            ending: None,
            finished: false,
        };
        let mut actions = Vec::new();
        if let Some(limit) = time_limit {
            actions.push(Action::Arm(Timer::Lifetime, limit));
        }
        actions.push(Action::Launch { attempt: 0 });
        (life, actions)
    }

    /// How long this attempt may take. The first gets a third: a machine that hangs is found
    /// sooner that way, and one that is only slow gets all the time in the second.
    fn boot_limit(&self) -> Duration {
        match self.attempt {
            0 => self.boot_timeout / 3,
            _ => self.boot_timeout,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether a guest that is not heard any more is taken for gone. One that was cut off is silent by
    /// our own hand, and one that is ending has its deadline already.
    fn minds_silence(&self) -> bool {
        !self.cut && self.ending.is_none()
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Why it ends, once that is decided.
    pub(crate) fn cause(&self) -> Option<EndCause> {
        self.ending.as_ref().map(|ending| ending.cause)
    }

    /// Whether the workload of this boot was started.
    pub(crate) fn has_workload(&self) -> bool {
        self.workload != Workload::None
    }

    /// Takes one input, `ms` milliseconds after the launch.
    pub(crate) fn on(&mut self, input: Input, ms: u64) -> Vec<Action> {
        if self.finished {
            return Vec::new();
        }
        let mut out = Vec::new();
        match input {
            Input::VmmStarted { vmm } => {
                self.machine = true;
                out.push(self.record(EventKind::VmmStarted { vmm, ms }));
                if self.ending.is_some() {
                    out.push(Action::Kill);
                } else {
                    out.push(Action::Arm(Timer::Boot, self.boot_limit()));
                }
            }
            Input::LaunchFailed { reason, may_retry } => {
                self.boot_failed(reason, may_retry, &mut out);
            }
            Input::Hello {
                kernel_release,
                kernel_ms,
            } => {
                if self.greeted {
                    self.violation("it said hello twice", &mut out);
                } else {
                    self.greeted = true;
                    out.push(self.record(EventKind::GuestHello {
                        kernel_release,
                        ms,
                        kernel_ms,
                    }));
                }
            }
            Input::Ready => self.ready(ms, &mut out),
            Input::GuestBootFailed { reason } => {
                if self.state == State::Starting {
                    self.boot_failed(reason, false, &mut out);
                } else {
                    self.violation(
                        &format!("it reported a failed boot after it was ready: {reason}"),
                        &mut out,
                    );
                }
            }
            Input::GoingDown { requested, clean } => self.going_down(requested, clean, &mut out),
            Input::Violation { detail } => self.violation(&detail, &mut out),
            Input::LinkLost => {
                if self.machine && self.minds_silence() {
                    out.push(Action::Arm(Timer::LinkLost, LINK_LOST_LIMIT));
                }
            }
            Input::VmmExited {
                exit,
                by_guest,
                console,
            } => self.vmm_exited(&exit, by_guest, console, &mut out),
            Input::WorkloadStarted => {
                self.workload = Workload::Running;
                out.push(self.record(EventKind::WorkloadStarted { ms }));
            }
            Input::WorkloadEnded { report } => self.workload_ended(report, ms, &mut out),
            Input::WorkloadDelivered => {
                if matches!(
                    self.cause(),
                    Some(EndCause::WorkloadFinished | EndCause::OutOfMemory)
                ) {
                    self.thaw_and_shut_down(AFTER_WORKLOAD_GRACE_MS, &mut out);
                }
            }
            Input::WorkloadLost => {
                // The machine is most likely about to end by itself and say more.
                if self.minds_silence() {
                    out.push(Action::Arm(Timer::LinkLost, LINK_LOST_LIMIT));
                }
            }
            Input::Halt { grace_ms } => self.asked_to_end(grace_ms, false, &mut out),
            Input::Stop { grace_ms } => self.asked_to_end(grace_ms, true, &mut out),
            Input::Kill => self.end_now(EndCause::Killed, None, &mut out),
            Input::Condemned { reason } => {
                self.end_now(EndCause::Unhealthy, Some(reason), &mut out);
            }
            Input::OwnerGone => self.end_now(EndCause::OwnerGone, None, &mut out),
            Input::Paused => self.moved(State::Paused, EventKind::Paused, &mut out),
            Input::Resumed => self.moved(State::Running, EventKind::Resumed, &mut out),
            Input::CutOff => self.cut = true,
            Input::Quarantined => {
                // Evidence is kept until somebody decides otherwise.
                out.push(Action::Disarm(Timer::Lifetime));
                out.push(Action::Disarm(Timer::LinkLost));
                self.moved(State::Quarantined, EventKind::Quarantined, &mut out);
            }
            Input::Timer(timer) => self.timer(timer, &mut out),
        }
        out
    }

    fn record(&self, kind: EventKind) -> Action {
        Action::Record {
            state: self.state,
            kind,
        }
    }

    fn moved(&mut self, next: State, kind: EventKind, out: &mut Vec<Action>) {
        if self.state.may_become(next) {
            self.state = next;
            out.push(self.record(kind));
        }
    }

    fn ready(&mut self, ms: u64, out: &mut Vec<Action>) {
        if !self.greeted || self.state != State::Starting {
            self.violation("it said ready out of turn", out);
        } else if self.ending.is_none() {
            out.push(Action::Disarm(Timer::Boot));
            self.state = State::Running;
            out.push(self.record(EventKind::GuestReady { ms }));
            out.push(Action::OpenSessions);
        }
    }

    fn boot_failed(&mut self, reason: String, may_retry: bool, out: &mut Vec<Action>) {
        out.push(Action::Disarm(Timer::Boot));
        if self.ending.is_none() && may_retry && self.attempt == 0 {
            out.push(self.record(EventKind::BootRetried { reason }));
            out.push(Action::Discard);
            out.push(Action::Disarm(Timer::LinkLost));
            self.machine = false;
            self.greeted = false;
            self.attempt = 1;
            out.push(Action::Launch { attempt: 1 });
            return;
        }
        self.because(EndCause::BootFailed, Some(reason));
        if self.machine {
            out.push(Action::Kill);
        } else {
            self.finish(out);
        }
    }

    fn violation(&mut self, detail: &str, out: &mut Vec<Action>) {
        let cause = if self.state == State::Starting {
            EndCause::BootFailed
        } else {
            EndCause::GuestPanicked
        };
        self.end_now(
            cause,
            Some(format!("the guest broke the protocol: {detail}")),
            out,
        );
    }

    fn workload_ended(&mut self, report: ExitReport, ms: u64, out: &mut Vec<Action>) {
        if matches!(self.workload, Workload::Ended(_)) {
            return;
        }
        out.push(self.record(EventKind::WorkloadExited {
            exit: report.status.clone(),
            ms,
        }));
        if self.ending.is_none() {
            let cause = if report.oom_kills > 0 && was_killed(&report.status) {
                EndCause::OutOfMemory
            } else {
                EndCause::WorkloadFinished
            };
            self.because(cause, None);
        }
        self.workload = Workload::Ended(report);
    }

    fn timer(&mut self, timer: Timer, out: &mut Vec<Action>) {
        match timer {
            Timer::Boot => {
                if self.state == State::Starting && self.ending.is_none() {
                    let reason = format!(
                        "the guest was not ready within {:.1} s",
                        self.boot_limit().as_secs_f64()
                    );
                    self.boot_failed(reason, true, out);
                }
            }
            Timer::Shutdown => {
                if let Some(ending) = &mut self.ending {
                    ending.detail.get_or_insert_with(|| {
                        "the guest did not power off in time and was killed".to_owned()
                    });
                    ending.forced |= !self.clean;
                }
                if self.machine {
                    out.push(Action::Kill);
                }
            }
            Timer::Lifetime => self.time_is_up(out),
            Timer::LinkLost => {
                if self.state == State::Starting && self.ending.is_none() {
                    self.boot_failed("the guest agent went away".to_owned(), true, out);
                } else if self.minds_silence() {
                    self.end_now(
                        EndCause::GuestPanicked,
                        Some("the guest agent went away".to_owned()),
                        out,
                    );
                }
            }
        }
    }
}

fn was_killed(status: &ExitStatus) -> bool {
    status.code() == 137
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
