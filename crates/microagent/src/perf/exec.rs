//! Commands in a workspace that runs.

use std::{
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use super::{Benchmark, PerfReport, Rounds, Series, Subject, Unit, millis};
use crate::{
    config::Config, error::Result, event::RunEvent, exec::ExecOptions, io::RunIo, session::lock,
    workspaces::Workspaces,
};

/// What is run, and where and how often.
#[derive(Clone, Debug)]
pub struct ExecBenchmark {
    /// The workspace; it must run.
    pub workspace: String,
    /// The command. It must end by itself with code 0.
    pub exec: ExecOptions,
    /// How often.
    pub rounds: Rounds,
}

impl ExecBenchmark {
    /// A hundred times `exec` in `workspace`, after ten that do not count.
    #[must_use]
    pub fn new(workspace: impl Into<String>, exec: ExecOptions) -> Self {
        Self {
            workspace: workspace.into(),
            exec,
            rounds: Rounds {
                warm_up: 10,
                iterations: 100,
            },
        }
    }
}

pub(super) fn measure(config: &Config, options: &ExecBenchmark) -> Result<PerfReport> {
    options.rounds.check()?;
    let workspace = Workspaces::new(config).open(&options.workspace)?;
    let at = SystemTime::now().into();
    let samples = options.rounds.measure(|| {
        let started = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&started);
        let io = RunIo::captured().on_event(move |event| {
            if matches!(event, RunEvent::Started) {
                *lock(&seen) = Some(Instant::now());
            }
        });
        let called = Instant::now();
        let result = workspace.exec(&options.exec, io)?;
        let total = called.elapsed();
        super::must_succeed(&result.command, result.exit_code, result.error.as_ref())?;
        let start = lock(&started).map_or(total, |at| at.duration_since(called));
        Ok((millis(total), millis(start)))
    })?;
    let subject = Subject::of(&workspace, options.exec.argv.clone())?;
    let ms = Unit::Milliseconds;
    let of = |pick: fn(&(f64, f64)) -> f64| samples.iter().map(pick).collect::<Vec<_>>();
    let series = [
        Series::new("total", ms, false, of(|(total, _)| *total)),
        Series::new("start", ms, true, of(|(_, start)| *start)),
        Series::new("command", ms, true, of(|(total, start)| total - start)),
    ];
    let series = series.into_iter().flatten().collect();
    let warm_up = options.rounds.warm_up;
    Ok(PerfReport::new(
        Benchmark::Exec,
        at,
        subject,
        warm_up,
        series,
    ))
}
