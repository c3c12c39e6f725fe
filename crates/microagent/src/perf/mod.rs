//! What machines and commands take on this host, measured the same way each time.
//!
//! A benchmark measures something several times, after some that do not count, and gives a
//! [`PerfReport`]: the samples, what they say, and of what they are made. A report can be saved and a
//! later one compared with it.

mod agent;
mod boot;
mod disk;
mod exec;
mod footprint;
mod idle;
mod link;
mod peer;
mod plot;
mod report;
mod stats;
mod steady;

use std::time::Duration;

use microagent_protocol::supervisor::ErrorReport;

pub use self::{
    boot::BootOptions,
    disk::DiskOptions,
    exec::ExecBenchmark,
    footprint::FootprintOptions,
    link::{NetOptions, VsockOptions},
    plot::{InvalidPicture, Picture, html, svg},
    report::{Benchmark, Change, Comparison, PerfReport, PerfVerdict, Series, Subject, Unit},
    stats::Summary,
    steady::SteadyOptions,
};
use crate::{
    config::Config,
    error::{Error, Result},
};

/// The most measurements of one benchmark.
const MOST: u32 = 100_000;

/// How often something is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Measurements that do not count, at the beginning.
    pub warm_up: u32,
    /// Measurements that count.
    pub iterations: u32,
}

impl Rounds {
    fn check(self) -> Result<()> {
        let limits = [
            ("--iterations", self.iterations, 1),
            ("--warm-up", self.warm_up, 0),
        ];
        match limits
            .iter()
            .find(|(_, count, least)| !(*least..=MOST).contains(count))
        {
            Some((flag, count, least)) => Err(Error::invalid(
                flag,
                format!("{count} is not from {least} to {MOST}"),
            )),
            None => Ok(()),
        }
    }

    /// Measures; what does not count is thrown away.
    fn measure<T>(self, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        for _ in 0..self.warm_up {
            measure()?;
        }
        (0..self.iterations).map(|_| measure()).collect()
    }
}

/// Benchmarks; see [`crate::Microagent::perf`].
#[derive(Clone, Copy, Debug)]
pub struct Perf<'a> {
    config: &'a Config,
}

impl<'a> Perf<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// Boots a machine again and again, from the call to the end of its command as the guest tells it.
    ///
    /// The parts are `prepare` (image, kernel, workspace), `spawn` (the supervisor), `vmm` (until the
    /// VMM runs), `kernel` (until the guest agent's hello), `agent` (until it is ready) and `workload`
    /// (until the command has ended). What follows, until nothing is left, is `teardown` and no part
    /// of `total`.
    ///
    /// # Errors
    /// Those of [`crate::Microagent::run`], and [`Error::Invalid`] for a command that fails.
    pub fn boot(&self, options: &BootOptions) -> Result<PerfReport> {
        boot::measure(self.config, options)
    }

    /// Runs a command again and again in a workspace that runs.
    ///
    /// The parts are `start` (until the caller knows that it runs) and `command` (until the caller
    /// knows how it ended).
    ///
    /// # Errors
    /// Those of [`crate::Workspace::exec`], and [`Error::Invalid`] for a command that fails.
    pub fn exec(&self, options: &ExecBenchmark) -> Result<PerfReport> {
        exec::measure(self.config, options)
    }

    /// Boots a machine that does nothing, again and again, and looks at what it takes on the host:
    /// the memory of its supervisor and of its VMM, as resident (`rss`) and with what they share with
    /// others divided by how many share it (`pss`).
    ///
    /// # Errors
    /// Those of [`crate::Microagent::run`], and [`Error::Io`] where `/proc` cannot be read.
    pub fn footprint(&self, options: &FootprintOptions) -> Result<PerfReport> {
        footprint::measure(self.config, options)
    }

    /// Boots a machine that does nothing, and watches how often threads of its supervisor and its VMM
    /// wake, and how much of one processor they take, second by second.
    ///
    /// # Errors
    /// As [`footprint`](Self::footprint).
    pub fn steady(&self, options: &SteadyOptions) -> Result<PerfReport> {
        steady::measure(self.config, options)
    }

    /// Boots a machine that does nothing else, and has its agent read and write the scratch disk and read
    /// the base disk, past the guest's page cache: `scratch_write`, `scratch_read` and `base_read` from end to
    /// end, `scratch_random_write`, `scratch_random_read` and `base_random_read` of 4 KiB somewhere, and
    /// `scratch_sync` of 4 KiB that are on stable storage. What the host keeps in its own memory counts as the
    /// disk.
    ///
    /// # Errors
    /// Those of [`crate::Workspaces::create`] and [`crate::Workspace::start`], and
    /// [`Error::NotMeasured`] for a scratch disk without room, say.
    pub fn disk(&self, options: &DiskOptions) -> Result<PerfReport> {
        disk::measure(self.config, options)
    }

    /// Boots a machine that does nothing else, and measures the way from its agent to this program and
    /// back: `user_…` through its network to an address of this host, and `published_…` through a
    /// published port. Each is a `round_trip` of 64 bytes, and 16 MiB `into_guest` and `out_of_guest`.
    ///
    /// For that it listens at this host's address towards the rest of the network, and talks to nobody who does
    /// not know a token of this measurement.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub fn net(&self, options: &NetOptions) -> Result<PerfReport> {
        link::net(self.config, options)
    }

    /// As [`net`](Self::net), by the guest's vsock: through the device and the supervisor, as a mediation
    /// route goes.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub fn vsock(&self, options: &VsockOptions) -> Result<PerfReport> {
        link::vsock(self.config, options)
    }
}

/// What fails measures nothing.
fn must_succeed(command: &[String], code: u8, error: Option<&ErrorReport>) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let why = error.map_or_else(|| format!("it exited with {code}"), |it| it.message.clone());
    Err(Error::invalid(
        "the measured command",
        format!(
            "{}: {why}; give one that ends with code 0",
            command.join(" ")
        ),
    ))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests;
