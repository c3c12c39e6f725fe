//! What can happen to a machine, and what can be done about it: the words of the state machine, no rule among them.

use std::time::Duration;

use microagent_protocol::{
    EndCause, ProcessIdentity, State, exec::ExitReport, supervisor::EventKind,
};

/// A deadline that can be armed; each kind at most once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The guest must be ready.
    Boot,
    /// The machine must be gone after a shutdown.
    Shutdown,
    /// The machine's whole life.
    Lifetime,
    /// The VMM must end after the guest link broke.
    LinkLost,
}

/// What the console says about an end nobody announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConsoleVerdict {
    /// The kernel panicked.
    pub(crate) panicked: bool,
    /// It did for lack of memory.
    pub(crate) out_of_memory: bool,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The VMM runs.
    VmmStarted { vmm: ProcessIdentity },
    /// The driver could not launch it.
    LaunchFailed { reason: String, may_retry: bool },
    /// The agent said hello.
    Hello {
        kernel_release: String,
        kernel_ms: u64,
    },
    /// The agent serves sessions.
    Ready,
    /// The agent gave up.
    GuestBootFailed { reason: String },
    /// The guest announced its end.
    GoingDown { requested: bool, clean: bool },
    /// The guest broke the protocol.
    Violation { detail: String },
    /// The control connection ended.
    LinkLost,
    /// The VMM ended.
    VmmExited {
        exit: String,
        /// The guest powered it off or reset it.
        by_guest: bool,
        console: ConsoleVerdict,
    },
    /// The workload runs.
    WorkloadStarted,
    /// The workload ended; its client is about to be told.
    WorkloadEnded { report: ExitReport },
    /// Its client was told, or is gone.
    WorkloadDelivered,
    /// The workload's session ended without a word.
    WorkloadLost,
    /// A clean end is asked for.
    Halt { grace_ms: u64 },
    /// An end is asked for.
    Stop { grace_ms: u64 },
    /// An end at once is asked for.
    Kill,
    /// An end at once is asked for because it is not well.
    Condemned { reason: String },
    /// The vCPUs were frozen.
    Paused,
    /// The vCPUs were thawed.
    Resumed,
    /// Its connections were cut, for a quarantine that comes or that failed to freeze it.
    CutOff,
    /// The vCPUs were frozen too, once it was [cut off](Self::CutOff).
    Quarantined,
    /// The owner ended or let go.
    OwnerGone,
    /// A deadline passed.
    Timer(Timer),
}

/// What is to be done about it, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Launch the machine; answered by `VmmStarted` or `LaunchFailed`.
    Launch { attempt: u32 },
    /// Kill and reap what there is of the machine of this attempt.
    Discard,
    /// Record an event.
    Record { state: State, kind: EventKind },
    /// Freeze nothing any more: a shutdown needs running vCPUs.
    Thaw,
    /// Ask the guest to shut down.
    Shutdown { grace_ms: u64 },
    /// Kill the VMM; answered by `VmmExited`.
    Kill,
    /// Set a deadline.
    Arm(Timer, Duration),
    /// Forget a deadline.
    Disarm(Timer),
    /// The guest is ready: let sessions through.
    OpenSessions,
    /// The machine is gone. The last action.
    Finish {
        state: State,
        cause: EndCause,
        detail: Option<String>,
        /// Whether the console's last lines explain the end.
        with_console: bool,
    },
}
