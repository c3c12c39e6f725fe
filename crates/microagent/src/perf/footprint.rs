//! What a machine that does nothing takes on the host.

use std::{fs, path::PathBuf, time::SystemTime};

use microagent_protocol::ProcessIdentity;

use super::{Benchmark, PerfReport, Rounds, Series, Unit, idle};
use crate::{
    config::Config,
    error::{Error, Result},
    options::RunOptions,
};

/// What is looked at, in `smaps_rollup` and in a report.
const KINDS: [(&str, &str); 2] = [("Rss:", "rss"), ("Pss:", "pss")];

/// What is booted, and how often.
#[derive(Clone, Debug)]
pub struct FootprintOptions {
    /// The machine. Its command is not run.
    pub run: RunOptions,
    /// How often.
    pub rounds: Rounds,
}

impl FootprintOptions {
    /// Three machines like that of `run`, one after the other.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            rounds: Rounds {
                warm_up: 0,
                iterations: 3,
            },
        }
    }
}

/// What the processes of one machine take, in bytes: for each of them one number of each kind.
type Taken = [[f64; KINDS.len()]; 2];

pub(super) fn measure(config: &Config, options: &FootprintOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let mut last = None;
    let taken: Vec<Taken> = options.rounds.measure(|| {
        let (taken, subject) = idle::with(config, &options.run, |[supervisor, vmm]| {
            Ok([memory(&supervisor)?, memory(&vmm)?])
        })?;
        last = Some(subject);
        Ok(taken)
    })?;
    // There was at least one.
    let subject = last.ok_or(Error::Cancelled { signal: 15 })?;
    let mut series = Vec::new();
    for (kind, (_, kind_name)) in KINDS.into_iter().enumerate() {
        let of = |process: usize| taken.iter().map(|it| it[process][kind]).collect::<Vec<_>>();
        let both = taken.iter().map(|it| it[0][kind] + it[1][kind]).collect();
        for (name, part, samples) in [
            ("total", false, both),
            ("supervisor", true, of(0)),
            ("vmm", true, of(1)),
        ] {
            let name = format!("{name}_{kind_name}");
            series.extend(Series::new(&name, Unit::Bytes, part, samples));
        }
    }
    let warm_up = options.rounds.warm_up;
    Ok(PerfReport::new(
        Benchmark::Footprint,
        at,
        subject,
        warm_up,
        series,
    ))
}

fn memory(process: &ProcessIdentity) -> Result<[f64; KINDS.len()]> {
    let path = PathBuf::from(format!("/proc/{}/smaps_rollup", process.pid));
    let failed = |source| Error::Io {
        doing: "read",
        path: path.clone(),
        source,
    };
    let text = fs::read_to_string(&path).map_err(failed)?;
    let mut found = [0.0; KINDS.len()];
    for (number, (field, _)) in found.iter_mut().zip(KINDS) {
        *number =
            bytes(&text, field).ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
    }
    Ok(found)
}

/// A field of `smaps_rollup`, in bytes.
fn bytes(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_whole_name_and_in_kib() {
        let text =
            "55d0-7ffc ---p 0 00:00 0 [rollup]\nRss:       2048 kB\nPss:   7 kB\nPss_Anon: 1 kB\n";
        assert_eq!(bytes(text, "Rss:"), Some(2048.0 * 1024.0));
        assert_eq!(bytes(text, "Pss:"), Some(7.0 * 1024.0));
        assert_eq!(bytes(text, "Swap:"), None);
        assert_eq!(bytes("Rss: 1 MB\n", "Rss:"), None);
    }
}
