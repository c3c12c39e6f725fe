//! What a machine that does nothing goes on doing.

use std::{fs, path::Path, thread, time::Duration, time::Instant, time::SystemTime};

use super::{Benchmark, PerfReport, Rounds, Series, Unit, idle};
use crate::{
    config::Config,
    error::{Error, IoContext, Result},
    options::RunOptions,
};

/// How long it is watched for each sample.
const WATCH: Duration = Duration::from_secs(1);

/// What is watched, and how long.
#[derive(Clone, Debug)]
pub struct SteadyOptions {
    /// The machine. Its command is not run.
    pub run: RunOptions,
    /// How many seconds, and how many before that do not count.
    pub rounds: Rounds,
}

impl SteadyOptions {
    /// Ten seconds of a machine like that of `run`, after two that do not count.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            rounds: Rounds {
                warm_up: 2,
                iterations: 10,
            },
        }
    }
}

/// What a process has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Done {
    /// How often one of its threads slept and was woken.
    woken: u64,
    /// Nanoseconds on a processor.
    ran: u64,
}

pub(super) fn measure(config: &Config, options: &SteadyOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let (samples, subject) = idle::with(config, &options.run, |[supervisor, vmm]| {
        let pids = [supervisor.pid, vmm.pid];
        options.rounds.measure(|| watch(pids))
    })?;
    let mut series = Vec::new();
    for (name, unit, pick) in [
        ("wakeups", Unit::PerSecond, woken as fn(&Second) -> f64),
        ("cpu", Unit::Percent, busy),
    ] {
        let of = |process: usize| {
            samples
                .iter()
                .map(|it| pick(&it[process]))
                .collect::<Vec<_>>()
        };
        let both = samples
            .iter()
            .map(|it| pick(&it[0]) + pick(&it[1]))
            .collect();
        for (whose, part, values) in [
            ("total", false, both),
            ("supervisor", true, of(0)),
            ("vmm", true, of(1)),
        ] {
            series.extend(Series::new(&format!("{whose}_{name}"), unit, part, values));
        }
    }
    let warm_up = options.rounds.warm_up;
    Ok(PerfReport::new(
        Benchmark::Steady,
        at,
        subject,
        warm_up,
        series,
    ))
}

/// What a process did in a time.
#[derive(Clone, Copy, Debug)]
struct Second {
    done: Done,
    took: Duration,
}

fn woken(second: &Second) -> f64 {
    second.done.woken as f64 / second.took.as_secs_f64()
}

/// Of one processor, in percent.
fn busy(second: &Second) -> f64 {
    second.done.ran as f64 / 1e7 / second.took.as_secs_f64()
}

fn watch(pids: [u32; 2]) -> Result<[Second; 2]> {
    let begun = Instant::now();
    let before = [done(pids[0])?, done(pids[1])?];
    thread::sleep(WATCH);
    let after = [done(pids[0])?, done(pids[1])?];
    let took = begun.elapsed();
    Ok([0, 1].map(|process| Second {
        done: Done {
            woken: after[process].woken.saturating_sub(before[process].woken),
            ran: after[process].ran.saturating_sub(before[process].ran),
        },
        took,
    }))
}

/// Of all threads of a process. One that ends meanwhile takes what it did along.
fn done(pid: u32) -> Result<Done> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let mut all = Done::default();
    for task in fs::read_dir(&tasks).context("list", &tasks)? {
        let task = task.context("list", &tasks)?.path();
        let read = |name: &str| fs::read_to_string(task.join(name));
        let (Ok(status), Ok(schedule)) = (read("status"), read("schedstat")) else {
            continue;
        };
        let one = thread_done(&status, &schedule).ok_or_else(|| Error::Io {
            doing: "read",
            path: task.join("schedstat"),
            source: std::io::ErrorKind::InvalidData.into(),
        })?;
        all.woken += one.woken;
        all.ran += one.ran;
    }
    Ok(all)
}

fn thread_done(status: &str, schedule: &str) -> Option<Done> {
    let woken = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    Some(Done {
        woken: woken.trim().parse().ok()?,
        ran: schedule.split_ascii_whitespace().next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_did_is_read_and_told_by_the_second() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t5\n";
        let done = thread_done(status, "250000000 77 3\n").unwrap();
        assert_eq!(
            done,
            Done {
                woken: 12,
                ran: 250_000_000
            }
        );
        let second = Second {
            done,
            took: Duration::from_secs(2),
        };
        assert_eq!((woken(&second), busy(&second)), (6.0, 12.5));
        assert_eq!(thread_done(status, ""), None);
        assert_eq!(thread_done("Name:\tx\n", "1 2 3"), None);
    }

    #[test]
    fn a_thread_that_runs_is_seen() {
        let before = done(std::process::id()).unwrap();
        let begun = Instant::now();
        while done(std::process::id()).unwrap().ran <= before.ran {
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        assert!(done(u32::MAX).is_err());
    }
}
