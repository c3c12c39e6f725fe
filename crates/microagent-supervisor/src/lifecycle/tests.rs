use microagent_protocol::{ProcessIdentity, StartFailure, state::TRANSITIONS};
use proptest::prelude::*;

use super::{ending::LAST_SYNC_LIMIT, *};

const BOOT: Duration = Duration::from_secs(30);

fn vmm() -> Input {
    Input::VmmStarted {
        vmm: ProcessIdentity {
            pid: 7,
            start_ticks: 1,
            boot_id: "boot".to_owned(),
        },
    }
}

fn hello() -> Input {
    Input::Hello {
        kernel_release: "6.1".to_owned(),
        kernel_ms: 1,
    }
}

fn exited() -> Input {
    Input::VmmExited {
        exit: "exit code 0".to_owned(),
        by_guest: false,
        console: ConsoleVerdict::default(),
    }
}

fn ended(status: ExitStatus) -> Input {
    Input::WorkloadEnded {
        report: ExitReport {
            status,
            oom_kills: 0,
        },
    }
}

fn code(code: u8) -> Input {
    ended(ExitStatus::Exited { code })
}

const CLEAN: Input = Input::GoingDown {
    requested: true,
    clean: true,
};

/// Feeds inputs one after the other; gives all actions of the last.
fn feed(life: &mut Lifecycle, inputs: &[Input]) -> Vec<Action> {
    inputs
        .iter()
        .map(|input| life.on(input.clone(), 5))
        .last()
        .unwrap_or_default()
}

fn running() -> Lifecycle {
    let (mut life, first) = Lifecycle::start(BOOT, None);
    assert_eq!(first, [Action::Launch { attempt: 0 }]);
    let actions = feed(&mut life, &[vmm(), hello(), Input::Ready]);
    assert!(actions.contains(&Action::OpenSessions));
    assert!(actions.contains(&Action::Disarm(Timer::Boot)));
    life
}

/// How a running machine ends when all this happens to it, the VMM's exit last.
fn end(inputs: &[Input]) -> (State, EndCause) {
    let mut life = running();
    feed(&mut life, inputs);
    finished(&feed(&mut life, &[exited()]))
}

fn finished(actions: &[Action]) -> (State, EndCause) {
    match actions.last() {
        Some(Action::Finish { state, cause, .. }) => (*state, *cause),
        other => panic!("not finished: {other:?}"),
    }
}

fn killed(actions: &[Action]) -> bool {
    actions.contains(&Action::Kill)
}

fn shut_down(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::Shutdown { .. }))
}

#[test]
fn a_workloads_end_decides_the_state() {
    use EndCause::WorkloadFinished;
    let delivered = Input::WorkloadDelivered;
    for (exit, state) in [
        (code(0), State::Halted),
        (code(1), State::Failed),
        (ended(ExitStatus::Signaled { signal: 15 }), State::Failed),
        (
            ended(ExitStatus::FailedToStart {
                reason: StartFailure::NotFound,
                message: String::new(),
            }),
            State::Failed,
        ),
    ] {
        assert_eq!(
            end(&[exit, delivered.clone(), CLEAN]),
            (state, WorkloadFinished)
        );
    }
    // Killed right away by a client that keeps nothing.
    assert_eq!(
        end(&[code(0), delivered.clone(), Input::Kill]),
        (State::Stopped, WorkloadFinished)
    );
    assert_eq!(
        end(&[code(0), Input::OwnerGone]),
        (State::Stopped, WorkloadFinished)
    );
}

#[test]
fn the_guest_is_shut_down_once_the_client_was_told() {
    let mut life = running();
    feed(&mut life, &[Input::WorkloadStarted]);
    assert!(!shut_down(&feed(&mut life, &[code(0)])));
    assert!(shut_down(&feed(&mut life, &[Input::WorkloadDelivered])));
    // A machine that was told to end on other grounds is not told twice.
    let mut life = running();
    feed(&mut life, &[Input::Halt { grace_ms: 60_000 }, code(0)]);
    assert!(!shut_down(&feed(&mut life, &[Input::WorkloadDelivered])));
}

#[test]
fn lack_of_memory_is_told_from_other_kills() {
    let killed = |oom_kills| Input::WorkloadEnded {
        report: ExitReport {
            status: ExitStatus::Signaled { signal: 9 },
            oom_kills,
        },
    };
    assert_eq!(
        end(&[killed(1), Input::WorkloadDelivered, CLEAN]),
        (State::Failed, EndCause::OutOfMemory)
    );
    assert_eq!(
        end(&[killed(0), Input::WorkloadDelivered, CLEAN]),
        (State::Failed, EndCause::WorkloadFinished)
    );
    let panicked = |out_of_memory| Input::VmmExited {
        exit: String::new(),
        by_guest: true, // It resets itself.
        console: ConsoleVerdict {
            panicked: true,
            out_of_memory,
        },
    };
    let last = |input| finished(&feed(&mut running(), &[input])).1;
    assert_eq!(last(panicked(true)), EndCause::OutOfMemory);
    assert_eq!(last(panicked(false)), EndCause::GuestPanicked);
    assert_eq!(last(exited()), EndCause::VmmDied);
}

#[test]
fn a_power_off_from_inside_fails_nobody() {
    let announced = |clean| Input::GoingDown {
        requested: false,
        clean,
    };
    let taken = ended(ExitStatus::Signaled { signal: 15 });
    let halted = (State::Halted, EndCause::GuestPoweredOff);
    for order in [
        [announced(false), taken.clone(), announced(true)],
        [taken, announced(false), announced(true)],
        [announced(false), announced(true), code(143)],
    ] {
        assert_eq!(end(&order), halted, "{order:?}");
    }
    let stopped = (State::Stopped, EndCause::GuestPoweredOff);
    assert_eq!(end(&[announced(false)]), stopped);
    // Past the agent: nobody said a word.
    let past = Input::VmmExited {
        exit: "exit code 0".to_owned(),
        by_guest: true,
        console: ConsoleVerdict::default(),
    };
    assert_eq!(finished(&feed(&mut running(), &[past])), stopped);
    // A workload that failed by itself did fail, whatever came after it.
    assert_eq!(
        end(&[code(3), announced(false), announced(true)]),
        (State::Failed, EndCause::WorkloadFinished)
    );
}

#[test]
fn halt_and_stop_differ_in_what_they_promise() {
    let halt = Input::Halt { grace_ms: 10 };
    let stop = Input::Stop { grace_ms: 10 };
    let requested = |state| (state, EndCause::Requested);
    assert_eq!(end(&[halt.clone(), CLEAN]), requested(State::Halted));
    assert_eq!(end(std::slice::from_ref(&halt)), requested(State::Stopped));
    assert_eq!(end(&[stop.clone(), CLEAN]), requested(State::Stopped));
    assert_eq!(end(&[halt.clone(), stop, CLEAN]), requested(State::Stopped));
    assert_eq!(
        end(&[halt.clone(), Input::Timer(Timer::Shutdown)]),
        requested(State::Stopped)
    );
    // The code of a workload that was asked to end is no failure.
    assert_eq!(
        end(&[halt.clone(), code(143), Input::WorkloadDelivered, CLEAN]),
        requested(State::Halted)
    );
    let mut life = running();
    feed(&mut life, &[Input::Paused]);
    let actions = feed(&mut life, &[halt]);
    assert_eq!(actions[0], Action::Thaw);
    assert!(shut_down(&actions));
}

#[test]
fn a_machine_that_is_not_well_fails_with_the_reason() {
    let mut life = running();
    let condemned = Input::Condemned {
        reason: "no answer".to_owned(),
    };
    assert!(killed(&feed(&mut life, &[condemned])));
    let (state, cause) = finished(&feed(&mut life, &[exited()]));
    assert_eq!((state, cause), (State::Failed, EndCause::Unhealthy));
}

#[test]
fn a_quarantined_machine_never_runs_again() {
    for (ask, state) in [
        (Input::Halt { grace_ms: 10 }, State::Halted),
        (Input::Stop { grace_ms: 10 }, State::Stopped),
        (Input::Kill, State::Stopped),
        (Input::OwnerGone, State::Stopped),
    ] {
        let mut life = running();
        let actions = feed(&mut life, &[Input::CutOff, Input::Quarantined]);
        assert!(actions.contains(&Action::Disarm(Timer::Lifetime)));
        assert_eq!(feed(&mut life, &[Input::LinkLost]), []);
        assert_eq!(feed(&mut life, &[Input::WorkloadLost]), []);
        let actions = feed(&mut life, &[ask]);
        assert!(killed(&actions) && !shut_down(&actions));
        assert!(!actions.contains(&Action::Thaw));
        assert_eq!(finished(&feed(&mut life, &[exited()])).0, state);
    }
}

#[test]
fn a_machine_that_was_cut_off_and_did_not_freeze_waits_for_its_end() {
    let mut life = running();
    feed(&mut life, &[Input::LinkLost]);
    let silent = [
        Input::CutOff,
        Input::LinkLost,
        Input::WorkloadLost,
        Input::Timer(Timer::LinkLost),
    ];
    assert_eq!(feed(&mut life, &silent), []);
    assert_eq!(life.state(), State::Running);
    assert!(killed(&feed(&mut life, &[Input::Kill])));
    let (state, cause) = finished(&feed(&mut life, &[exited()]));
    assert_eq!((state, cause), (State::Stopped, EndCause::Killed));
}

#[test]
fn a_boot_is_tried_twice_and_no_more() {
    let failures = [
        vec![exited()],
        vec![Input::Timer(Timer::Boot)],
        vec![hello(), Input::LinkLost, Input::Timer(Timer::LinkLost)],
    ];
    for first in &failures {
        for second in &failures {
            let (mut life, _) = Lifecycle::start(BOOT, None);
            feed(&mut life, &[vmm()]);
            let actions = feed(&mut life, first);
            let retry = [Action::Discard, Action::Launch { attempt: 1 }];
            assert!(retry.iter().all(|action| actions.contains(action)));
            feed(&mut life, &[vmm()]);
            let actions = feed(&mut life, second);
            assert!(!actions.contains(&Action::Launch { attempt: 2 }));
            let actions = match actions.last() {
                Some(Action::Finish { .. }) => actions,
                _ => feed(&mut life, &[exited()]),
            };
            assert_eq!(finished(&actions), (State::Failed, EndCause::BootFailed));
        }
    }
}

#[test]
fn some_boots_are_not_worth_a_second_try() {
    for last in [
        Input::GuestBootFailed {
            reason: "no disk".to_owned(),
        },
        Input::Violation {
            detail: "nonsense".to_owned(),
        },
        Input::Kill,
        Input::Stop { grace_ms: 1 },
    ] {
        let (mut life, _) = Lifecycle::start(BOOT, None);
        feed(&mut life, &[vmm(), hello()]);
        assert!(
            killed(&feed(&mut life, std::slice::from_ref(&last))),
            "{last:?}"
        );
        let (state, _) = finished(&feed(&mut life, &[exited()]));
        assert!(matches!(state, State::Failed | State::Stopped));
    }
    let (mut life, _) = Lifecycle::start(BOOT, None);
    let refused = Input::LaunchFailed {
        reason: "no such program".to_owned(),
        may_retry: false,
    };
    assert_eq!(
        finished(&feed(&mut life, &[refused])),
        (State::Failed, EndCause::BootFailed)
    );
}

#[test]
fn a_guest_out_of_step_is_killed() {
    for wrong in [hello(), Input::Ready] {
        let mut life = running();
        assert!(killed(&feed(&mut life, &[wrong])));
        let actions = feed(&mut life, &[exited()]);
        let Some(Action::Finish { detail, .. }) = actions.last() else {
            panic!("{actions:?}");
        };
        assert!(detail.as_ref().unwrap().contains("broke the protocol"));
    }
}

#[test]
fn a_guest_that_is_gone_is_not_waited_for_long() {
    for lost in [Input::LinkLost, Input::WorkloadLost] {
        let mut life = running();
        let actions = feed(&mut life, &[lost]);
        assert_eq!(actions, [Action::Arm(Timer::LinkLost, LINK_LOST_LIMIT)]);
        assert!(killed(&feed(&mut life, &[Input::Timer(Timer::LinkLost)])));
        assert_eq!(
            finished(&feed(&mut life, &[exited()])).1,
            EndCause::GuestPanicked
        );
    }
}

#[test]
fn time_is_up_whatever_goes_on() {
    let timed_out = (State::Failed, EndCause::TimedOut);
    let up = Input::Timer(Timer::Lifetime);
    let halt = Input::Halt { grace_ms: 60_000 };
    for before in [vec![], vec![Input::WorkloadStarted], vec![halt]] {
        let mut life = running();
        feed(&mut life, &before);
        let cause = match before.as_slice() {
            [Input::Halt { .. }] => EndCause::Requested,
            _ => EndCause::TimedOut,
        };
        let soon = Action::Arm(Timer::Shutdown, LAST_SYNC_LIMIT);
        let actions = feed(&mut life, std::slice::from_ref(&up));
        assert_eq!(actions, [Action::Shutdown { grace_ms: 0 }, soon.clone()]);
        // That its programs die of it is no end of their own.
        let actions = feed(&mut life, &[code(137), Input::WorkloadDelivered, CLEAN]);
        if cause == EndCause::TimedOut {
            assert_eq!(actions.last(), Some(&soon), "its word buys it no more time");
        }
        assert!(killed(&feed(&mut life, &[Input::Timer(Timer::Shutdown)])));
        assert_eq!(finished(&feed(&mut life, &[exited()])).1, cause);
    }
    let mut life = running();
    feed(&mut life, std::slice::from_ref(&up));
    assert_eq!(finished(&feed(&mut life, &[CLEAN, exited()])), timed_out);
    // One that is frozen stays frozen.
    let mut life = running();
    feed(&mut life, &[Input::Paused]);
    assert_eq!(feed(&mut life, &[up]), [Action::Kill]);
    assert_eq!(finished(&feed(&mut life, &[exited()])), timed_out);
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(vmm()),
        any::<bool>().prop_map(|may_retry| Input::LaunchFailed {
            reason: String::new(),
            may_retry
        }),
        Just(hello()),
        Just(Input::Ready),
        Just(Input::GuestBootFailed {
            reason: String::new()
        }),
        any::<(bool, bool)>().prop_map(|(requested, clean)| Input::GoingDown { requested, clean }),
        Just(Input::Violation {
            detail: String::new()
        }),
        Just(Input::LinkLost),
        Just(exited()),
        Just(Input::WorkloadStarted),
        any::<u8>().prop_map(code),
        Just(Input::WorkloadDelivered),
        Just(Input::WorkloadLost),
        any::<u64>().prop_map(|grace_ms| Input::Halt { grace_ms }),
        any::<u64>().prop_map(|grace_ms| Input::Stop { grace_ms }),
        Just(Input::Kill),
        Just(Input::Condemned {
            reason: String::new()
        }),
        Just(Input::Paused),
        Just(Input::Resumed),
        Just(Input::CutOff),
        Just(Input::Quarantined),
        Just(Input::OwnerGone),
        prop_oneof![
            Just(Timer::Boot),
            Just(Timer::Shutdown),
            Just(Timer::Lifetime),
            Just(Timer::LinkLost)
        ]
        .prop_map(Input::Timer),
    ]
}

proptest! {
    /// Whatever comes in whatever order: states move by the table alone, one
    /// machine is launched at a time, and an end is the end.
    #[test]
    fn any_order_of_inputs_is_survived(inputs in prop::collection::vec(any_input(), 0..40)) {
        let (mut life, first) = Lifecycle::start(BOOT, Some(BOOT));
        let mut state = State::Starting;
        let mut launches = first.iter().filter(|a| matches!(a, Action::Launch { .. })).count();
        let mut over = false;
        for input in inputs {
            let actions = life.on(input, 1);
            prop_assert!(!over || actions.is_empty(), "{actions:?} after the end");
            for action in actions {
                let next = match action {
                    Action::Record { state, .. } => state,
                    Action::Finish { state, .. } => {
                        over = true;
                        state
                    }
                    Action::Launch { .. } => {
                        launches += 1;
                        continue;
                    }
                    _ => continue,
                };
                prop_assert!(next == state || TRANSITIONS.contains(&(state, next)), "{state} to {next}");
                state = next;
            }
            prop_assert_eq!(life.state(), state);
            prop_assert!(launches <= 2);
            prop_assert_eq!(over, !state.is_live());
        }
    }

    /// However a machine got where it is, a kill and the VMM's exit end it.
    #[test]
    fn a_kill_always_ends_it(inputs in prop::collection::vec(any_input(), 0..40)) {
        let (mut life, _) = Lifecycle::start(BOOT, None);
        for input in inputs {
            life.on(input, 1);
        }
        life.on(Input::Kill, 1);
        life.on(exited(), 1);
        prop_assert!(!life.state().is_live());
    }
}
