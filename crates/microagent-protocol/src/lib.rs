//! Wire types and framing: the guest protocol (host and the agent inside a
//! microVM, over vsock) and the supervisor protocol (any program and the
//! supervisor of a microVM, over a private Unix socket).
//!
//! This crate owns what crosses a boundary and nothing else: no async runtime,
//! no operating-system calls, no policy. Every decoder here is bounded and
//! treats its input as hostile.
//!
//! Key style on every wire and in every file is `snake_case`.
#![forbid(unsafe_code)]

pub mod confinement;
pub mod copy;
pub mod exec;
pub mod frame;
pub mod guest;
pub mod identity;
pub mod launch;
pub mod log;
pub mod measure;
pub mod name;
pub mod output;
pub mod readiness;
#[cfg(test)]
mod schema;
pub mod shell;
pub mod state;
pub mod stats;
pub mod stream;
pub mod supervisor;
pub mod text;
pub mod time;
pub mod units;
pub mod wiring;

pub use confinement::{
    Confinement, ConfinementLayer, ConfinementMode, InvalidConfinementMode, MissingLayer,
};
pub use copy::{
    CopyEnd, CopyIn, CopyOut, CopyPath, CopyReport, CopyWhat, FileMode, Landing, Owner, Shipment,
};
pub use exec::{EnvVar, ExecRequest, ExecRole, ExitStatus, StartFailure, TtySize};
pub use frame::{Frame, FrameError, FrameKind, FrameReader};
pub use identity::ProcessIdentity;
pub use launch::{Backend, BackendChoice, Capabilities, LaunchSpec, NetworkMode, NetworkProvider};
pub use log::{InvalidLogFilter, LogFilter, LogLevel};
pub use name::WorkspaceName;
pub use output::CapturedOutput;
pub use readiness::{Readiness, ReadinessReport, ReadinessSignal};
pub use shell::{LineReport, ShellFate, ShellLine, ShellOrigin, ShellStart};
pub use state::{EndCause, State};
pub use stats::MachineStats;
pub use time::Timestamp;
pub use units::{Mebibytes, VcpuCount};
pub use wiring::{
    DeclaredArtifact, ExtraDisk, GuestPath, InvalidWiring, ItemName, MediationRoute,
    MediationTarget, PublishedPort,
};
