//! The executable on real virtual machines, seen from outside.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod artifacts;
mod docs;
mod ends;
mod examples;
mod exec;
mod exit_codes;
mod files;
mod hostile_guest;
mod images;
mod json;
mod kept;
mod kernels;
mod library;
mod lifecycle;
mod lifetime;
mod nested;
mod network;
mod older;
mod options;
mod perf;
mod plain;
mod refusals;
mod scene;
mod settings;
mod snippets;
mod specs;
mod streams;
mod supervise;
mod terminal;
mod transfer;
mod tuned;
mod volumes;
mod wiring;

use testkit::Sandbox;

/// A sandbox on the shared state, for the executable under test.
fn sandbox() -> Sandbox {
    Sandbox::new(env!("CARGO_BIN_EXE_microagent"))
}
