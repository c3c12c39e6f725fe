//! What is compiled beside tests, with the processor time that they leave.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    thread,
    time::Instant,
};

use anyhow::Context as _;

use crate::process::{self, Place};

type Job = (&'static str, fn(&Place) -> anyhow::Result<()>);

/// Jobs that run one after another.
pub(crate) struct Beside {
    ended: Receiver<Ended>,
}

struct Ended {
    log: PathBuf,
    seconds: f64,
    outcome: anyhow::Result<()>,
}

impl Beside {
    /// Begins with the first job.
    pub(crate) fn start(jobs: Vec<Job>) -> Self {
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            for (name, job) in jobs {
                let log = process::target_dir().join(format!("{name}.log"));
                let began = Instant::now();
                let outcome = run(&log, job);
                let ended = Ended {
                    log,
                    seconds: began.elapsed().as_secs_f64(),
                    outcome,
                };
                if sender.send(ended).is_err() {
                    break;
                }
            }
        });
        Self { ended }
    }

    /// Waits for the next job in order, shows what it said, and how it ended.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        let ended = self.ended.recv().context("what runs beside is gone")?;
        let said =
            fs::read(&ended.log).with_context(|| format!("cannot read {}", ended.log.display()))?;
        io::stdout().write_all(&said)?;
        println!("({:.1} s, beside the tests)", ended.seconds);
        ended.outcome
    }
}

fn run(log: &Path, job: fn(&Place) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    job(&Place::Beside(file))
}
