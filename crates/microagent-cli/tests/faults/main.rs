//! Nothing is lost and nothing is left, whatever is killed, full, torn or crowded.
//!
//! Each test says its seed; `MICROAGENT_FAULT_SEED` replays one, `MICROAGENT_FAULT_KILLS` makes the
//! killing longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod crowd;
mod kills;
mod random;
mod space;
mod torn;
mod world;
