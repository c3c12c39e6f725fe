//! The states of a workspace and the one table of how it moves between them.

use serde::{Deserialize, Serialize};

/// Where a workspace is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its disks and manifest exist; it has not booted since.
    Prepared,
    /// Its machine is being launched; the guest agent has not answered yet.
    Starting,
    /// The guest agent is ready.
    Running,
    /// Its vCPUs are frozen and can be thawed.
    Paused,
    /// It was shut down cleanly: disks synced and unmounted by the guest.
    Halted,
    /// It ended without a clean shutdown, on purpose.
    Stopped,
    /// It ended by a fault of the guest, the machine or its workload.
    Failed,
    /// Its vCPUs are frozen and every connection is severed, as evidence.
    Quarantined,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Prepared,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Halted,
        Self::Stopped,
        Self::Failed,
        Self::Quarantined,
    ];

    /// Whether a machine exists in this state.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Quarantined
        )
    }

    /// Whether something went wrong with a workspace that is at rest in this state.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Failed | Self::Quarantined)
    }

    /// Whether `self -> next` is in [`TRANSITIONS`].
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        TRANSITIONS.contains(&(self, next))
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepared => "prepared",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
        })
    }
}

/// Every allowed move from one state to another.
pub const TRANSITIONS: &[(State, State)] = &[
    (State::Prepared, State::Starting),
    (State::Halted, State::Starting),
    (State::Stopped, State::Starting),
    (State::Failed, State::Starting),
    (State::Starting, State::Running),
    (State::Starting, State::Stopped),
    (State::Starting, State::Failed),
    (State::Running, State::Paused),
    (State::Running, State::Halted),
    (State::Running, State::Stopped),
    (State::Running, State::Failed),
    (State::Running, State::Quarantined),
    (State::Paused, State::Running),
    (State::Paused, State::Halted),
    (State::Paused, State::Stopped),
    (State::Paused, State::Failed),
    (State::Paused, State::Quarantined),
    (State::Quarantined, State::Halted),
    (State::Quarantined, State::Stopped),
];

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// The workload finished and the guest was shut down after it.
    WorkloadFinished,
    /// The guest powered itself off.
    GuestPoweredOff,
    /// The guest's kernel panicked, or its agent could not go on.
    GuestPanicked,
    /// The guest never became ready.
    BootFailed,
    /// The VMM ended by itself or was killed by another hand.
    VmmDied,
    /// A halt or stop was asked for.
    Requested,
    /// It was killed on request.
    Killed,
    /// Its health probes failed.
    Unhealthy,
    /// Its time was up.
    TimedOut,
    /// The guest ran out of memory.
    OutOfMemory,
    /// The program that owned it ended or let go.
    OwnerGone,
}

impl EndCause {
    /// Every cause.
    pub const ALL: [Self; 11] = [
        Self::WorkloadFinished,
        Self::GuestPoweredOff,
        Self::GuestPanicked,
        Self::BootFailed,
        Self::VmmDied,
        Self::Requested,
        Self::Killed,
        Self::Unhealthy,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::OwnerGone,
    ];
}

impl std::fmt::Display for EndCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WorkloadFinished => "its command finished",
            Self::GuestPoweredOff => "the guest powered itself off",
            Self::GuestPanicked => "the guest's kernel panicked, or its agent could not go on",
            Self::BootFailed => "the guest did not become ready",
            Self::VmmDied => "the virtual machine monitor ended unexpectedly",
            Self::Requested => "it was asked to end",
            Self::Killed => "it was killed",
            Self::Unhealthy => "its health probes failed",
            Self::TimedOut => "the time limit was over",
            Self::OutOfMemory => "the guest ran out of memory",
            Self::OwnerGone => "its owner let it go",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quarantine_leads_only_to_halted_or_stopped() {
        let next: Vec<_> = State::ALL
            .into_iter()
            .filter(|next| State::Quarantined.may_become(*next))
            .collect();
        assert_eq!(next, [State::Halted, State::Stopped]);
    }

    #[test]
    fn every_state_can_be_reached_and_the_table_has_no_twins() {
        let mut reached = vec![State::Prepared];
        while let Some(new) = TRANSITIONS
            .iter()
            .find(|(from, to)| reached.contains(from) && !reached.contains(to))
        {
            reached.push(new.1);
        }
        assert_eq!(reached.len(), State::ALL.len());
        for (at, pair) in TRANSITIONS.iter().enumerate() {
            assert!(
                !TRANSITIONS[at + 1..].contains(pair),
                "{pair:?} stands twice"
            );
        }
    }

    proptest! {
        /// Whatever is tried, a workspace never boots while its machine lives,
        /// and a machine only ever appears through `starting`.
        #[test]
        fn walks_keep_one_machine(choices in prop::collection::vec(0..8usize, 0..64)) {
            let mut state = State::Prepared;
            for choice in choices {
                let next = State::ALL[choice];
                if state.may_become(next) {
                    prop_assert!(!(state.is_live() && next == State::Starting));
                    prop_assert!(state.is_live() || next == State::Starting);
                    state = next;
                }
            }
        }
    }
}
