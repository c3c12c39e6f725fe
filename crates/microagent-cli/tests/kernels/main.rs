//! The executable, and kernels from where they are made or published. No machine is started.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(target_arch = "x86_64")]
mod build;
mod repository;

use testkit::Sandbox;

/// An empty store for the executable under test.
fn sandbox() -> Sandbox {
    Sandbox::empty(env!("CARGO_BIN_EXE_microagent"))
}

/// How many kernels `sandbox` has.
fn count(sandbox: &Sandbox) -> usize {
    let list = sandbox.microagent(["kernel", "list"]).json().run();
    list.success().parsed()["kernels"].as_array().unwrap().len()
}
