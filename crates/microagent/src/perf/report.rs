//! What a benchmark brought, and how two of them compare.

use std::{fs, path::Path};

use microagent_protocol::{Backend, Timestamp};
use serde::{Deserialize, Serialize};

use super::stats::Summary;
use crate::{
    error::{Error, Result},
    files::{self, Durability},
    profile::Resources,
    result::{ImageInfo, KernelInfo},
    workspaces::{Workspace, status::last_backend},
};

/// The version of a saved report.
const FORMAT: u32 = 1;

/// A saved report may not be larger, in bytes.
const MAX: u64 = 16 << 20;

/// Which benchmark it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Benchmark {
    /// Machines from the call to the command's end.
    Boot,
    /// Commands in a machine that runs.
    Exec,
    /// What a machine that does nothing takes on the host.
    Footprint,
    /// What a machine that does nothing goes on doing.
    Steady,
    /// Disks, seen from inside.
    Disk,
    /// The way to the guest by its network and by a published port.
    Net,
    /// The way to the guest by its vsock.
    Vsock,
}

impl std::fmt::Display for Benchmark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Exec => "exec",
            Self::Footprint => "footprint",
            Self::Steady => "steady",
            Self::Disk => "disk",
            Self::Net => "net",
            Self::Vsock => "vsock",
        })
    }
}

/// In what something was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Times in a second.
    PerSecond,
    /// Of one processor, in percent.
    Percent,
    /// MiB in a second: the one of which more is better.
    MebibytesPerSecond,
}

impl Unit {
    /// Whether more of it is better.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::MebibytesPerSecond)
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The image.
    pub image: ImageInfo,
    /// The kernel.
    pub kernel: KernelInfo,
    /// What ran the machine, where that was seen.
    pub backend: Option<Backend>,
    /// What the machine was given.
    pub resources: Resources,
    /// What ran in it.
    pub command: Vec<String>,
}

impl Subject {
    pub(super) fn of(workspace: &Workspace<'_>, command: Vec<String>) -> Result<Self> {
        let manifest = workspace.manifest();
        Ok(Self {
            image: manifest.image.clone(),
            kernel: manifest.kernel.clone(),
            backend: last_backend(&workspace.history()?.events),
            resources: manifest.resources,
            command,
        })
    }
}

/// One thing that was measured again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Series {
    /// Its name: `total`, or a phase.
    pub name: String,
    /// In what.
    pub unit: Unit,
    /// Whether it is a part of `total`; the parts are in their order.
    pub part: bool,
    /// What the samples say.
    pub summary: Summary,
    /// The samples, in the order they were taken.
    pub samples: Vec<f64>,
}

impl Series {
    /// What was measured of `name`; `None` without a sample.
    pub(super) fn new(name: &str, unit: Unit, part: bool, samples: Vec<f64>) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            unit,
            part,
            summary: Summary::of(&samples)?,
            samples,
        })
    }
}

/// What a benchmark brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PerfReport {
    /// The version of this format.
    pub format: u32,
    /// Which benchmark it was.
    pub benchmark: Benchmark,
    /// The version of microagent.
    pub version: String,
    /// When it began.
    pub at: Timestamp,
    /// What was measured.
    pub subject: Subject,
    /// How often it was measured before anything counted.
    pub warm_up: u32,
    /// How often it was measured.
    pub iterations: u32,
    /// What was measured; less is better unless the unit says otherwise.
    pub series: Vec<Series>,
}

impl PerfReport {
    pub(super) fn new(
        benchmark: Benchmark,
        at: Timestamp,
        subject: Subject,
        warm_up: u32,
        series: Vec<Series>,
    ) -> Self {
        let iterations = series.first().map_or(0, |series| series.samples.len());
        Self {
            format: FORMAT,
            benchmark,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at,
            subject,
            warm_up,
            iterations: u32::try_from(iterations).unwrap_or(u32::MAX),
            series,
        }
    }

    /// One that was saved.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Invalid`] if it is none, or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let invalid =
            |why: String| Error::invalid("--baseline", format!("{}: {why}", path.display()));
        let size = fs::metadata(path).map_err(failed)?.len();
        if size > MAX {
            return Err(invalid(format!(
                "it has {size} bytes, and a saved report at most {MAX}"
            )));
        }
        let bytes = fs::read(path).map_err(failed)?;
        let version: Version = serde_json::from_slice(&bytes).map_err(|error| {
            invalid(format!(
                "it is no saved report ({error}); make one with --save"
            ))
        })?;
        if version.format != FORMAT {
            return Err(invalid(format!(
                "it has the format {}, and this program knows {FORMAT}; measure again with --save",
                version.format
            )));
        }
        let mut report: Self = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("it is damaged: {error}")))?;
        for series in &mut report.series {
            // What is compared is what the samples say, whatever the file says they do.
            series.summary = Summary::of(&series.samples).ok_or_else(|| {
                invalid(format!("it is damaged: {:?} has no samples", series.name))
            })?;
        }
        Ok(report)
    }

    /// Saves it, to be compared with later.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_json(path, self, Durability::Synced)
    }

    /// A series by its name.
    #[must_use]
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// How this compares with `baseline`. A difference counts from `tolerance` on (0.1 is a tenth).
    ///
    /// # Errors
    /// [`Error::Invalid`] if the two measured different things, or `tolerance` makes no sense.
    pub fn compare(&self, baseline: &Self, tolerance: f64) -> Result<Comparison> {
        if !(0.0..10.0).contains(&tolerance) {
            return Err(Error::invalid(
                "--tolerance",
                format!("{tolerance} is no part; use 0.1 for a tenth"),
            ));
        }
        if self.benchmark != baseline.benchmark {
            return Err(Error::invalid(
                "--baseline",
                format!(
                    "it is of the benchmark {}, and this is {}",
                    baseline.benchmark, self.benchmark
                ),
            ));
        }
        let changes: Vec<_> = self
            .series
            .iter()
            .filter_map(|now| {
                let before = baseline
                    .series(&now.name)
                    .filter(|it| it.unit == now.unit)?;
                Some(Change::new(before, now, tolerance))
            })
            .collect();
        // The whole decides: a part may cost more where another costs less.
        let whole = |change: &&Change| self.series(&change.name).is_some_and(|it| !it.part);
        let verdicts: Vec<_> = changes.iter().filter(whole).map(|it| it.verdict).collect();
        if verdicts.is_empty() {
            return Err(Error::invalid(
                "--baseline",
                "it has nothing that was measured here as well",
            ));
        }
        let verdict = match &verdicts {
            it if it.contains(&PerfVerdict::Worse) => PerfVerdict::Worse,
            it if it.contains(&PerfVerdict::Better) => PerfVerdict::Better,
            _ => PerfVerdict::Same,
        };
        Ok(Comparison {
            verdict,
            tolerance,
            changes,
        })
    }
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerfVerdict {
    /// It takes less.
    Better,
    /// The difference is within the tolerance, or within what the same thing differs by.
    Same,
    /// It takes more.
    Worse,
}

/// Read before the rest, which may be of a later version.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// How two reports compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// Of everything that is a whole and no part.
    pub verdict: PerfVerdict,
    /// From which part on a difference counts.
    pub tolerance: f64,
    /// What both measured.
    pub changes: Vec<Change>,
}

/// How one series compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The series.
    pub name: String,
    /// Its median before.
    pub before: f64,
    /// Its median now.
    pub now: f64,
    /// Now by before; none where there was nothing before.
    pub ratio: Option<f64>,
    /// What that means.
    pub verdict: PerfVerdict,
}

impl Change {
    /// The medians and the best of both must agree: what else the host does makes a median worse, and
    /// hardly ever the best.
    fn new(before: &Series, now: &Series, tolerance: f64) -> Self {
        let (b, n) = (&before.summary, &now.summary);
        let more = |before: f64, now: f64| now > before * (1.0 + tolerance);
        let (worse, better) = match now.unit.more_is_better() {
            false => (
                more(b.p50, n.p50) && more(b.min, n.min),
                more(n.p50, b.p50) && more(n.min, b.min),
            ),
            // Of rates the largest is the best; one that shrinks takes longer.
            true => (
                more(n.p50, b.p50) && more(n.max, b.max),
                more(b.p50, n.p50) && more(b.max, n.max),
            ),
        };
        let verdict = if worse {
            PerfVerdict::Worse
        } else if better {
            PerfVerdict::Better
        } else {
            PerfVerdict::Same
        };
        Self {
            name: now.name.clone(),
            before: b.p50,
            now: n.p50,
            ratio: (b.p50 > 0.0).then(|| n.p50 / b.p50),
            verdict,
        }
    }
}
