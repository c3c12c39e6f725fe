//! The supervisor protocol: any program and the supervisor of one machine.
//!
//! **Streaming form.** A private Unix socket. A client sends a
//! [`FrameKind::Request`] frame holding a [`Request`] and gets one
//! [`FrameKind::Response`] frame holding a [`Response`]; requests follow each
//! other on one connection. Some commands change the connection for good:
//! after [`Command::Exec`] was answered with [`Answer::Started`], or
//! [`Command::Shell`] with [`Answer::Line`], it is a session ([`crate::exec`],
//! [`crate::shell`]); after [`Command::Console`] it is the serial console; after
//! [`Command::Subscribe`] it carries [`FrameKind::Event`] frames until it closes.
//!
//! **One-shot form.** `microagent-supervisor` reads one [`Request`] as JSON
//! from standard input and writes one [`Response`] as a line of JSON to
//! standard output. [`Command::Host`] and [`Command::Check`] then end the
//! process (exit code 0 if `ok`); [`Command::Launch`] leaves a supervisor
//! behind, which listens at the socket named in the answer.
//!
//! Unknown fields are ignored, unknown commands and versions refused.
//!
//! [`FrameKind::Request`]: crate::FrameKind::Request
//! [`FrameKind::Response`]: crate::FrameKind::Response
//! [`FrameKind::Event`]: crate::FrameKind::Event

mod error;
mod event;
mod host;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::{
    error::{ErrorKind, ErrorReport},
    event::{Event, EventKind, WorkloadResult},
    host::{BackendReport, HostCheck, HostReport, Verdict},
};
use crate::{
    confinement::Confinement,
    copy::{CopyIn, CopyOut},
    exec::{ExecRequest, StartFailure},
    guest::GuestNetwork,
    identity::ProcessIdentity,
    launch::{Backend, BackendChoice, LaunchSpec, NetworkProvider},
    name::WorkspaceName,
    readiness::ReadinessReport,
    shell::{ShellLine, ShellOrigin},
    state::{EndCause, State},
    stats::MachineStats,
    wiring::PublishedPort,
};

/// The version of this protocol.
pub const SUPERVISOR_PROTOCOL: u32 = 1;

/// The control socket's file name in the runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The file in a workspace's directory that its supervisor holds locked (`flock`, exclusive) for
/// as long as it lives. Whoever finds it unlocked knows that no machine runs, whatever is recorded.
pub const MACHINE_LOCK: &str = "machine.lock";

/// A request to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Request {
    /// [`SUPERVISOR_PROTOCOL`].
    pub protocol: u32,
    /// Chosen by the client and given back in the answer.
    #[serde(default)]
    pub id: String,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

impl Request {
    /// A request of this version.
    #[must_use]
    pub fn new(command: Command) -> Self {
        Self {
            protocol: SUPERVISOR_PROTOCOL,
            id: String::new(),
            command,
        }
    }
}

/// What a supervisor can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "command", content = "arguments", rename_all = "snake_case")]
pub enum Command {
    /// One-shot: what can this host run? Boots a probe.
    Host(HostQuery),
    /// One-shot: would this launch be accepted? Boots nothing.
    Check(Box<LaunchSpec>),
    /// One-shot: boot it and supervise it.
    Launch(Box<LaunchSpec>),
    /// Where is it now?
    Inspect,
    /// Follow the events of this boot, those that happened already first. The
    /// connection ends after [`EventKind::Ended`].
    Subscribe {
        /// Whether the machine is to end when this connection does.
        owner: bool,
    },
    /// Run a process in the guest; waits for the guest to be ready. When the
    /// workload has ended and its client was told, the guest is shut down.
    Exec(ExecRequest),
    /// Run a line in the guest's persistent shell; waits for the guest to be ready and for
    /// the lines before it.
    Shell(ShellLine),
    /// Attach to the serial console: what the guest writes from now on comes as stdout
    /// frames, stdin frames are typed into it. Ends with the connection or the machine.
    Console,
    /// Pack something of the guest; waits for the guest to be ready. After
    /// [`Answer::Copying`] the connection is a copy's session ([`crate::copy`]).
    CopyOut(CopyOut),
    /// Land something in the guest, likewise.
    CopyIn(CopyIn),
    /// Shut it down cleanly; ends `halted`. Answered, as `stop` and `kill`
    /// are, when the machine has ended.
    Halt {
        /// How long the workload may take, in milliseconds.
        grace_ms: u64,
    },
    /// Like halt with a short grace, then by force; ends `stopped`.
    Stop {
        /// How long a clean shutdown may take, in milliseconds.
        grace_ms: u64,
    },
    /// End it at once; ends `stopped`.
    Kill,
    /// End it at once because it is not well; ends `failed`. Refused where it does not run.
    Condemn {
        /// Why, for people.
        reason: String,
    },
    /// Freeze its vCPUs.
    Pause,
    /// Thaw its vCPUs.
    Resume,
    /// Freeze it, sever every connection, keep the evidence.
    Quarantine,
    /// Have its published ports listen at other addresses of the host. What is connected stays
    /// so; where an address cannot be bound, all of them are as before.
    Rebind {
        /// Its published ports in their order, each with its address. The host's port is the one
        /// that is bound, or 0 for that.
        ports: Vec<PublishedPort>,
    },
    /// What does it cost its host? Answered with [`Answer::Stats`].
    Stats,
}

/// The arguments of [`Command::Host`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostQuery {
    /// Which backend is asked for.
    #[serde(default)]
    pub backend: BackendChoice,
    /// A kernel and initramfs to boot as the probe; without them only the VMM
    /// and the accelerators are probed.
    #[serde(default)]
    pub probe: Option<ProbeGuest>,
    /// Where verdicts are kept for the rest of this boot of the host.
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
    /// Prove everything again, whatever was kept.
    #[serde(default)]
    pub fresh: bool,
    /// How long each probe guest may take, in milliseconds, where that is longer than usual (5 s with
    /// KVM, 30 s emulated): for a host that is known to be slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_limit_ms: Option<u64>,
}

/// A guest to prove that the host can boot one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProbeGuest {
    /// The kernel, an uncompressed ELF image.
    pub kernel: PathBuf,
    /// The initramfs with the guest agent in it.
    pub initramfs: PathBuf,
}

/// A supervisor's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Response {
    /// [`SUPERVISOR_PROTOCOL`].
    pub protocol: u32,
    /// The request's identifier.
    #[serde(default)]
    pub id: String,
    /// Whether it was done.
    pub ok: bool,
    /// The answer, if it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The reason, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

impl Response {
    /// The answer to the request `id`.
    #[must_use]
    pub fn new(id: impl Into<String>, outcome: Result<Answer, ErrorReport>) -> Self {
        let (ok, answer, error) = match outcome {
            Ok(answer) => (true, Some(answer), None),
            Err(error) => (false, None, Some(error)),
        };
        Self {
            protocol: SUPERVISOR_PROTOCOL,
            id: id.into(),
            ok,
            answer,
            error,
        }
    }

    /// The answer or the error; a response with neither is an internal error.
    ///
    /// # Errors
    /// The supervisor's error.
    pub fn into_result(self) -> Result<Answer, ErrorReport> {
        match (self.ok, self.answer, self.error) {
            (true, Some(answer), _) => Ok(answer),
            (_, _, Some(error)) => Err(error),
            _ => Err(ErrorReport::new(
                ErrorKind::Internal,
                "the supervisor sent an empty response",
            )),
        }
    }
}

/// What a request brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum Answer {
    /// To `host`.
    Host(HostReport),
    /// To `check`: it would be accepted, with this backend.
    Accepted(Backend),
    /// To `launch`.
    Launched(Launched),
    /// To `inspect`, and to every control command: how it is now.
    Status(Box<Status>),
    /// To `stats`.
    Stats(Box<MachineStats>),
    /// To `subscribe`: events follow.
    Subscribed,
    /// To `exec`: the connection is a session from here on.
    Started {
        /// The process number in the guest.
        pid: u32,
    },
    /// To `shell`: the line's turn has come; the connection is a session from here on.
    Line {
        /// The shell's process number in the guest.
        pid: u32,
        /// Which shell it is.
        shell: ShellOrigin,
    },
    /// To `console`: the connection is the console from here on.
    Attached,
    /// To `copy_out` and `copy_in`: the connection is a session from here on.
    Copying,
    /// To `exec` and `shell`: the process never ran. There is no session; the connection
    /// takes further requests.
    FailedToStart {
        /// Why.
        reason: StartFailure,
        /// The same for a person, naming the program, user or directory.
        message: String,
    },
}

/// A supervisor that listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Launched {
    /// Its control socket.
    pub socket: PathBuf,
    /// Its process.
    pub supervisor: ProcessIdentity,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// The last event's number.
    pub sequence: u64,
    /// The backend in use, once it was chosen.
    #[serde(default)]
    pub backend: Option<Backend>,
    /// The supervisor's process.
    pub supervisor: ProcessIdentity,
    /// The VMM's process, while there is one.
    #[serde(default)]
    pub vmm: Option<ProcessIdentity>,
    /// Why it ended, once it did.
    #[serde(default)]
    pub end: Option<EndCause>,
    /// The ports published to it, each with the host's port that was bound.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The guest's one network interface; none where it has only loopback.
    #[serde(default)]
    pub network: Option<GuestNetwork>,
    /// What carries that.
    #[serde(default)]
    pub network_provider: Option<NetworkProvider>,
    /// What was seen to hold the VMM back, while there is one.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// What it was seen to be ready for.
    #[serde(default)]
    pub readiness: ReadinessReport,
}
