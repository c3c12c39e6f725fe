//! Boots, and what they are made of.

use std::{
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use microagent_protocol::supervisor::EventKind;

use super::{Benchmark, PerfReport, Rounds, Series, Subject, Unit, millis};
use crate::{
    config::Config,
    error::{Error, Result},
    event::RunEvent,
    io::RunIo,
    options::RunOptions,
    result::RunResult,
    run,
    session::lock,
};

/// The parts of a boot, in their order.
const PARTS: [&str; 6] = ["prepare", "spawn", "vmm", "kernel", "agent", "workload"];

/// What is booted, and how often.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The run that is measured. Its command must end by itself with code 0.
    pub run: RunOptions,
    /// How often.
    pub rounds: Rounds,
}

impl BootOptions {
    /// Ten boots of `run`, after one that does not count.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            rounds: Rounds {
                warm_up: 1,
                iterations: 10,
            },
        }
    }
}

/// When what happened: in milliseconds from the launch by the supervisor's clock, but for the last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    vmm: Option<u64>,
    hello: Option<u64>,
    ready: Option<u64>,
    exited: Option<u64>,
    /// When the caller heard of the end.
    heard: Option<Instant>,
}

impl Marks {
    fn take(&mut self, kind: &EventKind) {
        match kind {
            EventKind::VmmStarted { ms, .. } => self.vmm = Some(*ms),
            EventKind::GuestHello { ms, .. } => self.hello = Some(*ms),
            EventKind::GuestReady { ms } => self.ready = Some(*ms),
            EventKind::WorkloadExited { ms, .. } => {
                self.exited = Some(*ms);
                self.heard = Some(Instant::now());
            }
            _ => {}
        }
    }
}

/// One boot, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Boot {
    total: f64,
    parts: [f64; PARTS.len()],
    teardown: f64,
}

impl Boot {
    /// From the marks, when it was called and when it returned. What the caller prepared took `prepare`.
    pub(super) fn new(
        marks: Marks,
        (called, returned): (Instant, Instant),
        prepare: f64,
    ) -> Option<Self> {
        let heard = marks.heard?;
        let total = millis(heard.saturating_duration_since(called));
        let since_launch = marks.exited? as f64;
        let between = |from: u64, to: u64| to.saturating_sub(from) as f64;
        let (vmm, hello, ready) = (marks.vmm?, marks.hello?, marks.ready?);
        Some(Self {
            total,
            parts: [
                prepare,
                // What is left: the launch's own clock begins with the launch.
                (total - prepare - since_launch).max(0.0),
                vmm as f64,
                between(vmm, hello),
                between(hello, ready),
                between(ready, marks.exited?),
            ],
            teardown: millis(returned.saturating_duration_since(heard)),
        })
    }
}

pub(super) fn measure(config: &Config, options: &BootOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let mut last = None;
    let boots = options.rounds.measure(|| {
        let (boot, result) = once(config, &options.run)?;
        last = Some(result);
        Ok(boot)
    })?;
    // There was at least one.
    let result = last.ok_or(Error::Cancelled { signal: 15 })?;
    let subject = Subject {
        image: result.image,
        kernel: result.kernel,
        backend: result.backend,
        resources: result.resources,
        command: result.command,
    };
    let samples = |of: &dyn Fn(&Boot) -> f64| boots.iter().map(of).collect::<Vec<_>>();
    let ms = Unit::Milliseconds;
    let mut series = vec![Series::new("total", ms, false, samples(&|boot| boot.total))];
    for (index, name) in PARTS.into_iter().enumerate() {
        series.push(Series::new(
            name,
            ms,
            true,
            samples(&|boot| boot.parts[index]),
        ));
    }
    series.push(Series::new(
        "teardown",
        ms,
        false,
        samples(&|boot| boot.teardown),
    ));
    let series = series.into_iter().flatten().collect();
    let warm_up = options.rounds.warm_up;
    Ok(PerfReport::new(
        Benchmark::Boot,
        at,
        subject,
        warm_up,
        series,
    ))
}

fn once(config: &Config, run: &RunOptions) -> Result<(Boot, RunResult)> {
    let marks = Arc::new(Mutex::new(Marks::default()));
    let seen = Arc::clone(&marks);
    let io = RunIo::captured().on_event(move |event| {
        if let RunEvent::Machine(event) = event {
            lock(&seen).take(&event.kind);
        }
    });
    let called = Instant::now();
    let result = run::run(config, run, io)?;
    let returned = Instant::now();
    super::must_succeed(&result.command, result.exit_code, result.error.as_ref())?;
    let prepared = ["image", "kernel", "workspace"];
    let phases = result.phases.iter();
    let prepare: u64 = phases
        .filter(|phase| prepared.contains(&phase.name.as_str()))
        .map(|phase| phase.ms)
        .sum();
    let marks = *lock(&marks);
    let boot = Boot::new(marks, (called, returned), prepare as f64).ok_or_else(|| {
        Error::SupervisorFailed {
            subject: result.workspace.clone(),
            reason: "it did not tell of every step of the boot".to_owned(),
            log: None,
        }
    })?;
    Ok((boot, result))
}
