//! The executable on real virtual machines, seen from outside.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod exit_codes;
mod hostile_guest;
mod images;
mod json;
mod kept;
mod library;
mod lifetime;
mod refusals;
mod settings;
mod streams;
mod terminal;

use testkit::Sandbox;

/// A sandbox on the shared state, for the executable under test.
fn sandbox() -> Sandbox {
    Sandbox::new(env!("CARGO_BIN_EXE_microagent"))
}
