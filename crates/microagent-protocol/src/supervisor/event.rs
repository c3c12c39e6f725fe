//! What happened to a machine, and how its workload ended.

use serde::{Deserialize, Serialize};

use crate::{
    exec::ExitStatus,
    identity::ProcessIdentity,
    launch::Backend,
    output::CapturedOutput,
    state::{EndCause, State},
    time::Timestamp,
    wiring::PublishedPort,
};

/// One line of `events.jsonl`, and one frame to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts from 1 over the workspace's whole life.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// The state after it.
    pub state: State,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A machine is about to be launched.
    Starting {
        /// The backend in use.
        backend: Backend,
        /// Why this one, for people.
        reason: String,
    },
    /// The host's ports that lead into the guest are bound, or are at other addresses now.
    PortsPublished {
        /// Them, each with the host's port that was bound.
        ports: Vec<PublishedPort>,
    },
    /// The VMM runs.
    VmmStarted {
        /// Its process.
        vmm: ProcessIdentity,
        /// Milliseconds from the launch to now.
        ms: u64,
    },
    /// The first boot attempt came to nothing; another machine type is tried.
    BootRetried {
        /// What happened.
        reason: String,
    },
    /// The agent said hello.
    GuestHello {
        /// The kernel's release.
        kernel_release: String,
        /// Milliseconds from the launch to now.
        ms: u64,
        /// Milliseconds from the kernel's start to the agent's, by the guest's clock.
        kernel_ms: u64,
    },
    /// The guest is ready for sessions.
    GuestReady {
        /// Milliseconds from the launch to now.
        ms: u64,
    },
    /// The workload runs.
    WorkloadStarted {
        /// Milliseconds from the launch to now.
        ms: u64,
    },
    /// The workload ended.
    WorkloadExited {
        /// How.
        exit: ExitStatus,
        /// Milliseconds from the launch to now.
        ms: u64,
    },
    /// Its vCPUs are frozen.
    Paused,
    /// Its vCPUs run again.
    Resumed,
    /// It is contained.
    Quarantined,
    /// The machine is gone. The last event of a boot.
    Ended {
        /// Why.
        cause: EndCause,
        /// More for people: the console's last words, for example.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// Milliseconds from the launch to now.
        ms: u64,
    },
}

/// `result.json`: what became of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkloadResult {
    /// When the workload was started.
    pub started_at: Timestamp,
    /// When it ended.
    pub exited_at: Timestamp,
    /// How it ended, if it was seen to.
    pub exit: Option<ExitStatus>,
    /// The exit code for shells, if it was seen to end.
    pub exit_code: Option<u8>,
    /// How often the guest's kernel killed a process for lack of memory meanwhile.
    #[serde(default)]
    pub oom_kills: u64,
    /// The kept part of its standard output.
    pub stdout: CapturedOutput,
    /// The kept part of its standard error.
    pub stderr: CapturedOutput,
}
