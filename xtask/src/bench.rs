//! `cargo xtask bench`: measures what SPECIFICATION.md promises.
//!
//! What is compared runs interleaved in one session, because machines are
//! shared and noisy: look at the ratios.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    bench_check, bench_density, bench_exec, bench_files, bench_first, bench_floor, bench_image,
    bench_net, bench_pull, bench_run, bench_workspace, debian, install, packages, process,
};

/// One measured figure.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The most it may be, if that is promised.
    pub(crate) at_most: Option<f64>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            at_most: None,
        }
    }

    pub(crate) fn at_most(mut self, limit: f64) -> Self {
        self.at_most = Some(limit);
        self
    }

    fn holds(&self) -> bool {
        self.at_most.is_none_or(|limit| self.value <= limit)
    }

    /// Whether it says something of this program on any host, and less is better.
    pub(crate) fn is_of_ours(&self) -> bool {
        matches!(self.unit, "×" | "MiB")
    }

    fn promise(&self) -> String {
        self.at_most
            .map_or_else(String::new, |limit| format!("≤ {}", short(limit)))
    }
}

/// What every benchmark works with.
pub(crate) struct Bench {
    microagent: PathBuf,
    dir: PathBuf,
    pub(crate) runs: usize,
    /// How many machines at once, if that was said.
    pub(crate) machines: Option<usize>,
    limit: Option<Duration>,
}

impl Bench {
    /// A directory for files of the benchmarks.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The rounds of one benchmark, from now on: as many as were asked for, but none is begun when its time is up,
    /// save the first.
    pub(crate) fn rounds(&self) -> impl Iterator<Item = usize> + use<> {
        let (begun, limit) = (Instant::now(), self.limit);
        let is_in_time =
            move |round: &usize| *round == 0 || limit.is_none_or(|limit| begun.elapsed() < limit);
        (0..self.runs).take_while(is_in_time)
    }

    /// `microagent` on the benchmarks' own state.
    pub(crate) fn microagent(&self) -> Command {
        self.microagent_on(&self.state())
    }

    /// `microagent` on another state directory.
    pub(crate) fn microagent_on(&self, state: &Path) -> Command {
        let mut command = Command::new(&self.microagent);
        command.arg("--state-dir").arg(state);
        command
    }

    /// The benchmarks' own state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }
}

type Benchmark = fn(&Bench) -> anyhow::Result<Vec<Figure>>;

const BENCHMARKS: &[(&str, Benchmark)] = &[
    ("sizes", bench_run::sizes),
    ("supervisor-rss", bench_run::supervisor_rss),
    ("idle", bench_run::idle),
    ("run-vs-bare-boot", bench_run::run_against_bare_boot),
    (
        "kernel-vs-distribution",
        bench_run::kernel_against_distribution,
    ),
    ("create", bench_workspace::create),
    (
        "start-vs-bare-boot",
        bench_workspace::start_against_bare_boot,
    ),
    ("exec", bench_exec::exec),
    ("copy", bench_exec::copy),
    ("import-vs-umoci-mke2fs", bench_image::import),
    ("pull-1gb", bench_pull::pull),
    ("pull-floor", bench_floor::floor),
    ("pull-100000-files", bench_files::pull_many_files),
    ("first-start", bench_first::first_start),
    ("published-port-vs-hostfwd", bench_net::published),
    ("density", bench_density::density),
    ("density-tuned-kernel", bench_density::density_tuned),
    ("boots-under-load", bench_run::boots_under_load),
];

/// Runs the benchmarks whose name contains `filter` and prints a table; not a
/// success if a promise does not hold, or a figure is worse than in `check`.
pub(crate) fn run(
    filter: &str,
    runs: usize,
    machines: Option<usize>,
    limit: Option<Duration>,
    save: Option<&Path>,
    check: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    packages::install(&[packages::RUN, packages::TEST, packages::BENCH], false)?;
    let chosen: Vec<_> = BENCHMARKS
        .iter()
        .filter(|(name, _)| name.contains(filter))
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        bail!(
            "no benchmark is called like {filter:?}; there are {}",
            names.join(", ")
        );
    }
    let bench = Bench {
        microagent: install::release_binary()?,
        dir: process::target_dir().join("bench"),
        runs: runs.max(1),
        machines,
        limit,
    };
    fs::create_dir_all(&bench.dir)?;
    prepare(&bench)?;

    let mut table = Vec::new();
    for (name, benchmark) in chosen {
        println!("\n== {name}");
        let figures = benchmark(&bench).with_context(|| format!("the benchmark {name} failed"))?;
        for figure in figures {
            println!("{}", row(&figure));
            table.push(figure);
        }
    }
    println!(
        "\n{:<52} {:>10} {:<6} {:>10}",
        "figure", "measured", "", "promised"
    );
    for figure in &table {
        println!("{}", row(figure));
    }
    let worse = match check {
        Some(path) => bench_check::regressions(path, &table)?,
        None => Vec::new(),
    };
    if let Some(path) = save {
        bench_check::save(path, &table)?;
    }
    if !worse.is_empty() {
        eprintln!("\nWorse than before:\n  {}", worse.join("\n  "));
    }
    let broken: Vec<_> = table.iter().filter(|figure| !figure.holds()).collect();
    if broken.is_empty() && worse.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if !broken.is_empty() {
        eprintln!("\nNot as promised:");
    }
    for figure in broken {
        eprintln!(
            "  {}: {} {}, promised {}",
            figure.name,
            short(figure.value),
            figure.unit,
            figure.promise()
        );
    }
    Ok(ExitCode::FAILURE)
}

fn row(figure: &Figure) -> String {
    let verdict = if figure.holds() { "" } else { "  BROKEN" };
    format!(
        "{:<52} {:>10.3} {:<6} {:>10}{verdict}",
        figure.name,
        figure.value,
        figure.unit,
        figure.promise()
    )
}

/// With as many digits as say something.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A kernel, and the images that are run.
fn prepare(bench: &Bench) -> anyhow::Result<()> {
    let install = ["--json", "kernel", "install"];
    let installed = process::output(bench.microagent().args(install))?;
    let record: Value = serde_json::from_slice(&installed.stdout)?;
    let id = record["id"].as_str().context("a kernel without an id")?;
    // By choice, not as the latest: one that a benchmark installs besides, and leaves if it is
    // killed, is only that benchmark's.
    process::output(bench.microagent().args(["kernel", "use", id]))?;
    let tar = debian::rootfs_tar()?;
    process::output(
        bench
            .microagent()
            .args(["images", "import", "--name", "debian:12"])
            .arg(tar),
    )?;
    Ok(())
}

/// How long `command` takes, in seconds; it must succeed.
pub(crate) fn seconds(command: &mut Command) -> anyhow::Result<f64> {
    let start = Instant::now();
    process::output(command)?;
    Ok(start.elapsed().as_secs_f64())
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 if middle > 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values.get(middle).copied().unwrap_or(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, median, short};

    #[test]
    fn promises_are_readable() {
        assert_eq!(
            [1.0 / 6.0, 1.3, 15.0, 0.0].map(short),
            ["0.167", "1.3", "15", "0"]
        );
    }

    #[test]
    fn no_round_is_begun_when_time_is_up() {
        let of = |limit| super::Bench {
            microagent: "microagent".into(),
            dir: "bench".into(),
            runs: 3,
            machines: None,
            limit,
        };
        assert_eq!(of(None).rounds().count(), 3);
        assert_eq!(of(Some(Duration::ZERO)).rounds().count(), 1);
        assert_eq!(of(Some(Duration::from_secs(60))).rounds().count(), 3);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(vec![]).is_nan());
    }
}
