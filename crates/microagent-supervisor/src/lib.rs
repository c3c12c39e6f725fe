//! One process per running VM: owns the VMM, the guest link, the console and the workspace's recorded state.
//!
//! It is told what to boot (a [`LaunchSpec`](microagent_protocol::LaunchSpec))
//! and knows nothing of images, registries or where a workspace's files come
//! from. Everything the guest sends is taken for hostile.
//!
//! * [`entry`] turns a process into a supervisor when it was started as one.
//! * A supervisor answers one request on standard input (`oneshot`); a launch
//!   makes it listen at a socket (`launch`, `control`).
//! * The `engine` thread feeds what happens to a pure state machine
//!   (`lifecycle`) and does what comes out; sessions are relayed beside it
//!   (`session`), the guest's control connection is read by `link`, published
//!   ports and mediation routes are carried by `wiring`.
#![deny(unsafe_code)]
// On Windows the library says that machines cannot be supervised there yet.
#![cfg(unix)]

mod backend;
mod console;
mod control;
mod copy;
mod crew;
mod engine;
mod error;
mod events;
mod files;
mod launch;
mod lifecycle;
mod link;
mod log;
mod oneshot;
mod owner;
mod peer;
mod process;
mod readiness;
mod result;
mod serial;
mod session;
mod stats;
mod text;
mod wiring;

use std::{ffi::OsStr, path::Path};

pub use backend::{Backends, Chosen, HostBackends};
pub use error::Error;
pub use launch::validate;

/// The name a program is started by (`argv[0]`) to be a supervisor.
pub const PROGRAM: &str = "microagent-supervisor";

/// The first argument that makes any program with [`entry`] in its `main` a supervisor.
pub const MARKER: &str = "__supervisor";

/// [`entry_with`] the drivers this host has.
pub fn entry() {
    entry_with(&HostBackends);
}

/// Runs the supervisor with the given drivers and ends the process, if this
/// process was started to be one; returns otherwise.
///
/// A process is a supervisor if its `argv[0]` has the file name [`PROGRAM`] or
/// its first argument is [`MARKER`]. Call it first thing in `main`: before any
/// thread is started and any file opened.
pub fn entry_with(backends: &dyn Backends) {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let named = name
        .as_deref()
        .and_then(|name| Path::new(name).file_name())
        .is_some_and(|name| name == OsStr::new(PROGRAM));
    if named || arguments.next().is_some_and(|first| first == MARKER) {
        std::process::exit(oneshot::run(backends));
    }
}
