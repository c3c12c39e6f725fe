//! Guests, registries, fixtures and kills, so that a VM test is ten lines.
//!
//! For tests only: everything here panics with what was expected and what was
//! seen, and names the Debian package where a program is missing.
#![forbid(unsafe_code)]
// What it drives are Unix programs.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod chrome;
mod command;
pub mod corpus;
mod evidence;
mod fixture;
pub mod harness;
mod inherited;
pub mod kernels;
mod leftovers;
mod port;
pub mod prometheus;
mod pty;
#[cfg(target_os = "linux")]
mod reflink;
pub mod registry;
mod sandbox;
mod skips;
pub mod transcript;

pub use command::{Finished, Invocation, Running, sha256, tool};
pub use fixture::{busybox_tar, containers_arm64_tar, containers_tar, image_with_config};
pub use inherited::{executable, unmount};
pub use leftovers::Leftovers;
pub use port::Port;
pub use pty::Terminal;
#[cfg(target_os = "linux")]
pub use reflink::Xfs;
pub use sandbox::Sandbox;
pub use skips::{skip_part, skip_test};

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Asks `done` again and again until it gives something, or panics after `limit`.
pub fn eventually<T>(limit: Duration, what: &str, done: impl FnMut() -> Option<T>) -> T {
    eventually_or(limit, || what.to_owned(), done)
}

/// The same, for a description that is made when it has not happened.
pub fn eventually_or<T>(
    limit: Duration,
    what: impl Fn() -> String,
    mut done: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "{} did not happen within {limit:?}",
            what()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where what is slow to make is kept between runs.
#[must_use]
pub fn cache_dir() -> PathBuf {
    let dir = std::env::var_os("MICROAGENT_TEST_CACHE").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../target/test-cache"
            ))
        },
        PathBuf::from,
    );
    std::fs::create_dir_all(&dir)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    dir
}

/// Panics unless `program` is installed, naming its Debian package.
pub fn require(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file());
    assert!(
        found,
        "{program} is missing; install the package {package}, or run `cargo xtask test`"
    );
}
