//! The lifecycle against a model: what somebody who has read the documents expects of a machine
//! whose guest does as it is told, whatever is done to it in whatever order.

use microagent_protocol::ProcessIdentity;
use proptest::prelude::*;

use super::*;

/// Something that is done to a machine, or that happens to it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pause,
    Resume,
    /// A quarantine that failed to freeze it.
    CutOff,
    Quarantine,
    Halt,
    Stop,
    Kill,
    OwnerGone,
    Condemn,
    TimeIsUp,
    WorkloadEnds(u8),
    PowersOff,
    Panics {
        out_of_memory: bool,
    },
    VmmDies,
}

/// What is expected after a step: the state, and the cause if the machine has ended.
type Expected = (State, Option<EndCause>);

fn expected(state: State, step: Step) -> Expected {
    use EndCause as Cause;
    use State::{Failed, Halted, Paused, Quarantined, Running, Stopped};
    let contained = state == Quarantined;
    // What was contained did not fail: it can only be ended.
    let fault = if contained { Stopped } else { Failed };
    match step {
        Step::Pause if state == Running => (Paused, None),
        Step::Resume if state == Paused => (Running, None),
        Step::Quarantine => (Quarantined, None),
        Step::Halt => (Halted, Some(Cause::Requested)),
        Step::Stop => (Stopped, Some(Cause::Requested)),
        Step::Kill => (Stopped, Some(Cause::Killed)),
        Step::OwnerGone => (Stopped, Some(Cause::OwnerGone)),
        Step::Condemn => (fault, Some(Cause::Unhealthy)),
        Step::TimeIsUp if !contained => (Failed, Some(Cause::TimedOut)),
        Step::Panics {
            out_of_memory: true,
        } => (fault, Some(Cause::OutOfMemory)),
        Step::Panics {
            out_of_memory: false,
        } => (fault, Some(Cause::GuestPanicked)),
        Step::VmmDies => (fault, Some(Cause::VmmDied)),
        // A guest does nothing unless its vCPUs run.
        Step::WorkloadEnds(0) if state == Running => (Halted, Some(Cause::WorkloadFinished)),
        Step::WorkloadEnds(_) if state == Running => (Failed, Some(Cause::WorkloadFinished)),
        Step::PowersOff if state == Running => (Halted, Some(Cause::GuestPoweredOff)),
        _ => (state, None),
    }
}

/// A machine with a guest that does as it is told.
struct Machine {
    life: Lifecycle,
    /// Whether the time limit is still counted.
    limited: bool,
    end: Option<(State, EndCause)>,
}

impl Machine {
    fn running() -> Self {
        let limit = Duration::from_secs(30);
        let (life, _) = Lifecycle::start(limit, Some(limit));
        let mut machine = Self {
            life,
            limited: true,
            end: None,
        };
        let vmm = ProcessIdentity {
            pid: 7,
            start_ticks: 1,
            boot_id: "boot".to_owned(),
        };
        machine.feed(Input::VmmStarted { vmm });
        machine.feed(Input::Hello {
            kernel_release: "6.1".to_owned(),
            kernel_ms: 1,
        });
        machine.feed(Input::Ready);
        machine.feed(Input::WorkloadStarted);
        machine
    }

    /// Feeds an input, and what guest and VMM do about the actions that come of it.
    fn feed(&mut self, input: Input) {
        for action in self.life.on(input, 5) {
            match action {
                Action::Shutdown { .. } => {
                    self.feed(Input::GoingDown {
                        requested: true,
                        clean: true,
                    });
                    self.exit(ConsoleVerdict::default());
                }
                Action::Kill => self.exit(ConsoleVerdict::default()),
                Action::Disarm(Timer::Lifetime) => self.limited = false,
                Action::Finish { state, cause, .. } => self.end = Some((state, cause)),
                _ => {}
            }
        }
    }

    fn exit(&mut self, console: ConsoleVerdict) {
        self.feed(Input::VmmExited {
            exit: "it is gone".to_owned(),
            by_guest: false,
            console,
        });
    }

    fn step(&mut self, step: Step) {
        let runs = self.life.state() == State::Running;
        match step {
            Step::Pause => self.feed(Input::Paused),
            Step::Resume => self.feed(Input::Resumed),
            Step::CutOff => self.feed(Input::CutOff),
            Step::Quarantine => {
                self.feed(Input::CutOff);
                self.feed(Input::Quarantined);
            }
            Step::Halt => self.feed(Input::Halt { grace_ms: 10 }),
            Step::Stop => self.feed(Input::Stop { grace_ms: 10 }),
            Step::Kill => self.feed(Input::Kill),
            Step::OwnerGone => self.feed(Input::OwnerGone),
            Step::Condemn => self.feed(Input::Condemned {
                reason: String::new(),
            }),
            Step::TimeIsUp if self.limited => self.feed(Input::Timer(Timer::Lifetime)),
            Step::WorkloadEnds(code) if runs => {
                self.feed(Input::WorkloadEnded {
                    report: ExitReport {
                        status: ExitStatus::Exited { code },
                        oom_kills: 0,
                    },
                });
                self.feed(Input::WorkloadDelivered);
            }
            Step::PowersOff if runs => {
                self.feed(Input::GoingDown {
                    requested: false,
                    clean: true,
                });
                self.exit(ConsoleVerdict::default());
            }
            Step::Panics { out_of_memory } => self.exit(ConsoleVerdict {
                panicked: true,
                out_of_memory,
            }),
            Step::VmmDies => self.exit(ConsoleVerdict::default()),
            Step::TimeIsUp | Step::WorkloadEnds(_) | Step::PowersOff => {}
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    // What goes on comes more often than what ends it.
    prop_oneof![
        4 => Just(Step::Pause),
        4 => Just(Step::Resume),
        1 => Just(Step::CutOff),
        1 => Just(Step::Quarantine),
        1 => Just(Step::Halt),
        1 => Just(Step::Stop),
        1 => Just(Step::Kill),
        1 => Just(Step::OwnerGone),
        1 => Just(Step::Condemn),
        1 => Just(Step::TimeIsUp),
        1 => prop_oneof![Just(0), any::<u8>()].prop_map(Step::WorkloadEnds),
        1 => Just(Step::PowersOff),
        1 => any::<bool>().prop_map(|out_of_memory| Step::Panics { out_of_memory }),
        1 => Just(Step::VmmDies),
    ]
}

proptest! {
    #[test]
    fn a_machine_does_what_is_expected_of_it(steps in prop::collection::vec(any_step(), 1..24)) {
        let mut machine = Machine::running();
        let mut model = State::Running;
        for (at, step) in steps.iter().enumerate() {
            let (state, cause) = expected(model, *step);
            machine.step(*step);
            let what = format!("step {at} of {steps:?}");
            prop_assert_eq!(machine.life.state(), state, "{}", what);
            prop_assert_eq!(machine.end, cause.map(|cause| (state, cause)), "{}", what);
            model = state;
            if cause.is_some() {
                break;
            }
        }
    }
}
