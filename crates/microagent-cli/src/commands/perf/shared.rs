//! What the benchmarks have in common: how often, compared with what, and how it is shown.

use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    BackendChoice, Error, KernelChoice, Mebibytes, NetworkMode, RunOptions, VcpuCount,
    perf::{Change, Comparison, PerfReport, PerfVerdict, Picture, Rounds, Series, Unit},
};
use serde::Serialize;

use crate::{
    completion,
    output::{Colour, Screen, size},
    refusals, surroundings,
};

/// The exit code of a benchmark that is worse than its baseline.
const EXIT_WORSE: u8 = 3;

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  measured; with --baseline also: not worse
  1  microagent failed, or the measured command did
  2  the command line is wrong
  3  worse than the baseline";

/// How often, and compared with what.
#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    /// Measure this often
    #[arg(long, short = 'n', value_name = "N")]
    iterations: Option<u32>,
    /// Measure this often before anything counts
    #[arg(long, value_name = "N")]
    warm_up: Option<u32>,
    /// Save the report here, to be a baseline later
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Draw the report, and the baseline beside it: FILE.svg or FILE.html
    #[arg(long, value_name = "FILE")]
    plot: Option<Picture>,
    /// Compare with a report that was saved; exit with 3 if this is worse
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// From which part on a difference counts: 0.1 is a tenth
    #[arg(
        long,
        value_name = "PART",
        default_value_t = 0.1,
        requires = "baseline"
    )]
    tolerance: f64,
}

/// What is run.
#[derive(Debug, Args)]
pub(super) struct CommandArgs {
    /// The command and its arguments; it must end with code 0
    #[arg(
        value_name = "COMMAND",
        default_value = "true",
        trailing_var_arg = true
    )]
    pub(super) command: Vec<String>,
}

/// What is booted.
#[derive(Debug, Args)]
pub(super) struct MachineArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(completion::images))]
    image: String,
    /// Memory: MiB, or a number with M or G
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Mebibytes>,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<VcpuCount>,
    /// How it is connected: user or isolated
    #[arg(long, value_name = "MODE", value_parser = refusals::network)]
    network: Option<NetworkMode>,
    /// What runs it: auto, or a backend by name
    #[arg(long, value_name = "BACKEND", default_value_t)]
    backend: BackendChoice,
    /// An installed kernel's id [default: the default kernel]
    #[arg(long, value_name = "KERNEL", add = ArgValueCompleter::new(completion::kernels))]
    kernel: Option<String>,
}

impl MachineArgs {
    pub(super) fn run_options(&self) -> RunOptions {
        let mut options = RunOptions::new(&self.image).backend(self.backend);
        if let Some(memory) = self.memory {
            options = options.memory(memory);
        }
        if let Some(cpus) = self.cpus {
            options = options.vcpus(cpus);
        }
        if let Some(network) = self.network {
            options = options.network(network);
        }
        if let Some(kernel) = &self.kernel {
            options = options.kernel(KernelChoice::Installed(kernel.clone()));
        }
        options
    }
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    report: PerfReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
}

impl MeasureArgs {
    /// As often as was asked for, else as `rounds` says.
    pub(super) fn rounds(&self, rounds: Rounds) -> Rounds {
        Rounds {
            warm_up: self.warm_up.unwrap_or(rounds.warm_up),
            iterations: self.iterations.unwrap_or(rounds.iterations),
        }
    }

    /// Measures, shows and compares; gives the exit code.
    pub(super) fn finish(
        &self,
        screen: &Screen,
        measure: impl FnOnce() -> Result<PerfReport, Error>,
    ) -> Result<u8, Error> {
        // A baseline that is none is told of before anything takes its time.
        let baseline = self.baseline.as_deref().map(PerfReport::read).transpose()?;
        let report = measure()?;
        if let Some(path) = &self.save {
            report.save(&surroundings::absolute(path)?)?;
        }
        let comparison = baseline
            .as_ref()
            .map(|baseline| report.compare(baseline, self.tolerance))
            .transpose()?;
        if let Some(picture) = &self.plot {
            let before = baseline.iter().map(|baseline| ("before", baseline));
            let reports: Vec<_> = [("now", &report)].into_iter().chain(before).collect();
            picture.draw(&reports)?;
        }
        let verdict = comparison.as_ref().map(|it| it.verdict);
        let measured = Measured { report, comparison };
        screen.coloured(&measured, |it| text(it, screen));
        Ok(match verdict {
            Some(PerfVerdict::Worse) => EXIT_WORSE,
            Some(PerfVerdict::Better | PerfVerdict::Same) | None => 0,
        })
    }
}

fn text(measured: &Measured, screen: &Screen) -> String {
    let report = &measured.report;
    let mut text = format!(
        "{} of {} with {}, {} measured after {} that do not count\n{:<24} {:>12} {:>12} {:>12} {:>12}\n",
        report.benchmark,
        report.subject.image.reference,
        report.subject.kernel.release,
        report.iterations,
        report.warm_up,
        "",
        "min",
        "p50",
        "p95",
        "max",
    );
    for series in &report.series {
        text.push_str(&row(series));
    }
    if let Some(comparison) = &measured.comparison {
        text.push_str(&compared(comparison, report, screen));
    }
    text
}

fn row(series: &Series) -> String {
    let name = if series.part {
        format!("  {}", series.name)
    } else {
        series.name.clone()
    };
    let summary = &series.summary;
    let [min, p50, p95, max] = [summary.min, summary.p50, summary.p95, summary.max]
        .map(|value| amount(value, series.unit));
    format!("{name:<24} {min:>12} {p50:>12} {p95:>12} {max:>12}\n")
}

fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds => format!("{value:.2} ms"),
        // As a float it is a whole number, far below what a u64 holds.
        Unit::Bytes => size(value as u64),
        Unit::PerSecond => format!("{value:.1} /s"),
        Unit::Percent => format!("{value:.2} %"),
        Unit::MebibytesPerSecond => format!("{value:.1} MiB/s"),
    }
}

fn compared(comparison: &Comparison, report: &PerfReport, screen: &Screen) -> String {
    let word = |verdict| match verdict {
        PerfVerdict::Better => screen.paint(Colour::Green, "better"),
        PerfVerdict::Same => "same".to_owned(),
        PerfVerdict::Worse => screen.paint(Colour::Red, "worse"),
    };
    let line = |change: &Change| {
        let unit = report
            .series(&change.name)
            .map_or(Unit::Milliseconds, |series| series.unit);
        let ratio = change
            .ratio
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        format!(
            "{:<24} {:>12} -> {:>12}  {ratio:>6}  {}\n",
            change.name,
            amount(change.before, unit),
            amount(change.now, unit),
            word(change.verdict),
        )
    };
    let lines: String = comparison.changes.iter().map(line).collect();
    format!(
        "\nMedians, before and now:\n{lines}{}\n",
        word(comparison.verdict)
    )
}
