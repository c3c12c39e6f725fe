//! When to start a workspace again, and when to give it up. Pure: it is told what was seen, and
//! says what to do.

use std::time::Duration;

use microagent_protocol::{EndCause, State};

use super::{health::HealthCheck, policy::RestartPolicy};

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) state: State,
    pub(super) cause: Option<EndCause>,
    /// How long it was up.
    pub(super) up: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start it after this pause.
    Start(Duration),
    /// Watch it: it is up.
    Watch,
    /// Leave it as it is.
    Finish(SuperviseEnd),
}

/// Why supervision came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuperviseEnd {
    /// The policy does not start it (again).
    Policy,
    /// It was started again as often as was allowed.
    RestartLimit,
    /// Somebody halted it.
    Halted,
    /// It is quarantined: evidence is not touched.
    Quarantined,
    /// It was removed.
    Removed,
    /// The caller asked for the end, and it was halted.
    Requested,
}

/// Counts restarts and pauses.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    policy: RestartPolicy,
    /// `None`: as often as it takes.
    max_restarts: Option<u32>,
    restarts: u32,
    backoff: Duration,
}

impl Keeper {
    /// Goes on with another policy.
    pub(super) fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    pub(super) fn new(policy: RestartPolicy, max_restarts: Option<u32>) -> Self {
        Self {
            policy,
            max_restarts,
            restarts: 0,
            backoff: RestartPolicy::FIRST_BACKOFF,
        }
    }

    /// How often it was started again.
    pub(super) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// What to do with a workspace that is found in `state`.
    pub(super) fn begin(&self, state: State) -> Next {
        match (self.policy, state) {
            (_, State::Quarantined) => Next::Finish(SuperviseEnd::Quarantined),
            (RestartPolicy::Never, _) => Next::Finish(SuperviseEnd::Policy),
            (_, state) if state.is_live() => Next::Watch,
            _ => Next::Start(Duration::ZERO),
        }
    }

    /// What to do after its machine ended.
    pub(super) fn ended(&mut self, ending: Ending) -> Next {
        if ending.state == State::Quarantined {
            return Next::Finish(SuperviseEnd::Quarantined);
        }
        let failed = ending.state == State::Failed;
        if ending.state == State::Halted && ending.cause == Some(EndCause::Requested) {
            return Next::Finish(SuperviseEnd::Halted);
        }
        let again = match self.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => failed,
            RestartPolicy::Always => true,
        };
        if !again {
            return Next::Finish(SuperviseEnd::Policy);
        }
        if self.max_restarts.is_some_and(|max| self.restarts >= max) {
            return Next::Finish(SuperviseEnd::RestartLimit);
        }
        if ending.up >= RestartPolicy::STEADY {
            self.backoff = RestartPolicy::FIRST_BACKOFF;
        }
        let pause = self.backoff;
        self.backoff = (pause * 2).min(RestartPolicy::MAX_BACKOFF);
        self.restarts += 1;
        Next::Start(pause)
    }
}

/// Counts probes of one machine. Times are since its guest was ready.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    interval: Duration,
    retries: u32,
    failures: u32,
    next: Duration,
}

/// What a probe showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is well.
    Well,
    /// It was not, this many times one after the other.
    Unwell(u32),
    /// It was not, as often as is allowed.
    Lost(u32),
}

impl Pulse {
    pub(super) fn new(check: &HealthCheck) -> Self {
        Self {
            interval: check.interval(),
            retries: check.retries.get(),
            failures: 0,
            next: check.start_period(),
        }
    }

    /// When the next probe is due.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// How many probes failed one after the other, up to now.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a probe that ended at `now`.
    pub(super) fn probed(&mut self, well: bool, now: Duration) -> Condition {
        self.next = now + self.interval;
        if well {
            self.failures = 0;
            return Condition::Well;
        }
        self.failures += 1;
        if self.failures >= self.retries {
            Condition::Lost(self.failures)
        } else {
            Condition::Unwell(self.failures)
        }
    }

    /// Puts the next probe off, as for a machine that is paused.
    pub(super) fn skipped(&mut self, now: Duration) {
        self.next = now + self.interval;
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::supervise::HealthProbe;

    fn ending(state: State, cause: EndCause, up: u64) -> Ending {
        Ending {
            state,
            cause: Some(cause),
            up: Duration::from_secs(up),
        }
    }

    #[test]
    fn policies_start_what_they_say() {
        use RestartPolicy::{Always, Never, OnFailure};
        let ends = [
            (
                State::Failed,
                EndCause::WorkloadFinished,
                [false, true, true],
            ),
            (State::Failed, EndCause::VmmDied, [false, true, true]),
            (State::Stopped, EndCause::Killed, [false, false, true]),
            (State::Stopped, EndCause::Requested, [false, false, true]),
            (
                State::Halted,
                EndCause::WorkloadFinished,
                [false, false, true],
            ),
            (
                State::Halted,
                EndCause::GuestPoweredOff,
                [false, false, true],
            ),
            (State::Halted, EndCause::Requested, [false, false, false]),
            (
                State::Quarantined,
                EndCause::Requested,
                [false, false, false],
            ),
        ];
        for (state, cause, expected) in ends {
            let again = [Never, OnFailure, Always].map(|policy| {
                let next = Keeper::new(policy, None).ended(ending(state, cause, 0));
                matches!(next, Next::Start(_))
            });
            assert_eq!(again, expected, "{state} {cause:?}");
        }
    }

    #[test]
    fn what_is_up_is_watched_and_what_is_not_is_started() {
        let keeper = Keeper::new(RestartPolicy::OnFailure, None);
        assert_eq!(keeper.begin(State::Running), Next::Watch);
        assert_eq!(keeper.begin(State::Paused), Next::Watch);
        assert_eq!(keeper.begin(State::Halted), Next::Start(Duration::ZERO));
        assert_eq!(
            keeper.begin(State::Quarantined),
            Next::Finish(SuperviseEnd::Quarantined)
        );
        let never = Keeper::new(RestartPolicy::Never, None);
        assert_eq!(
            never.begin(State::Prepared),
            Next::Finish(SuperviseEnd::Policy)
        );
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_again_after_a_steady_one() {
        let mut keeper = Keeper::new(RestartPolicy::Always, None);
        let mut pause = |up| match keeper.ended(ending(State::Failed, EndCause::VmmDied, up)) {
            Next::Start(pause) => pause.as_secs(),
            other => panic!("{other:?}"),
        };
        let pauses: Vec<_> = (0..8).map(|_| pause(5)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(RestartPolicy::STEADY.as_secs()), 1);
        assert_eq!(pause(0), 2);
    }

    fn check(interval: u32, retries: u32, start_period_seconds: u32) -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Exec(vec!["true".into()]),
            interval_seconds: interval.try_into().unwrap(),
            timeout_seconds: 1.try_into().unwrap(),
            retries: retries.try_into().unwrap(),
            start_period_seconds,
        }
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let at = Duration::from_secs;
        let mut pulse = Pulse::new(&check(10, 3, 5));
        assert_eq!(pulse.next(), at(5));
        assert_eq!(pulse.probed(false, at(6)), Condition::Unwell(1));
        assert_eq!(pulse.next(), at(16));
        assert_eq!(pulse.probed(false, at(16)), Condition::Unwell(2));
        assert_eq!(pulse.probed(true, at(26)), Condition::Well);
        assert_eq!(pulse.probed(false, at(36)), Condition::Unwell(1));
        assert_eq!(pulse.probed(false, at(46)), Condition::Unwell(2));
        pulse.skipped(at(56));
        assert_eq!(pulse.probed(false, at(66)), Condition::Unwell(1));
        assert_eq!(pulse.probed(false, at(76)), Condition::Unwell(2));
        assert_eq!(pulse.probed(false, at(86)), Condition::Lost(3));
    }

    fn any_ending() -> impl Strategy<Value = Ending> {
        let states = prop::sample::select(vec![
            State::Halted,
            State::Stopped,
            State::Failed,
            State::Quarantined,
        ]);
        let causes = prop::sample::select(vec![
            EndCause::WorkloadFinished,
            EndCause::GuestPoweredOff,
            EndCause::GuestPanicked,
            EndCause::BootFailed,
            EndCause::VmmDied,
            EndCause::Requested,
            EndCause::Killed,
            EndCause::OutOfMemory,
            EndCause::Unhealthy,
        ]);
        (states, prop::option::of(causes), 0..200_u64).prop_map(|(state, cause, up)| Ending {
            state,
            cause,
            up: Duration::from_secs(up),
        })
    }

    proptest! {
        /// Whatever happens: no more restarts than allowed, no pause out of bounds, none after a
        /// request to halt or a quarantine, and failures are always answered while allowed.
        #[test]
        fn a_keeper_keeps_its_bounds(
            policy in prop::sample::select(RestartPolicy::ALL.to_vec()),
            max in prop::option::of(0..5_u32),
            endings in prop::collection::vec(any_ending(), 0..40),
        ) {
            let mut keeper = Keeper::new(policy, max);
            let mut last = Duration::ZERO;
            for ending in endings {
                let before = keeper.restarts();
                let next = keeper.ended(ending);
                let failed = ending.state == State::Failed;
                let quarantined = ending.state == State::Quarantined;
                match next {
                    Next::Start(pause) => {
                        prop_assert!((RestartPolicy::FIRST_BACKOFF..=RestartPolicy::MAX_BACKOFF).contains(&pause));
                        prop_assert!(ending.up >= RestartPolicy::STEADY || pause >= last.min(RestartPolicy::MAX_BACKOFF));
                        prop_assert!(policy != RestartPolicy::Never && !quarantined);
                        prop_assert!(policy == RestartPolicy::Always || failed);
                        prop_assert_eq!(keeper.restarts(), before + 1);
                        last = pause;
                    }
                    Next::Finish(end) => {
                        prop_assert_eq!(keeper.restarts(), before);
                        if end == SuperviseEnd::RestartLimit {
                            prop_assert_eq!(Some(before), max);
                        }
                        if failed && !quarantined && policy != RestartPolicy::Never {
                            prop_assert_eq!(end, SuperviseEnd::RestartLimit);
                        }
                        break;
                    }
                    Next::Watch => prop_assert!(false, "there is nothing to watch"),
                }
                if let Some(max) = max {
                    prop_assert!(keeper.restarts() <= max);
                }
            }
        }

        /// A machine is lost exactly when its last probes, as many as allowed, failed.
        #[test]
        fn a_pulse_is_lost_after_enough_failures_in_a_row(
            retries in 1..6_u32,
            probes in prop::collection::vec(any::<bool>(), 1..60),
        ) {
            let mut pulse = Pulse::new(&check(1, retries, 0));
            let mut row = 0;
            for (second, well) in probes.into_iter().enumerate() {
                row = if well { 0 } else { row + 1 };
                let condition = pulse.probed(well, Duration::from_secs(second as u64));
                prop_assert_eq!(matches!(condition, Condition::Lost(_)), row >= retries);
                prop_assert_eq!(condition == Condition::Well, well);
                if row >= retries {
                    break;
                }
            }
        }
    }
}
