//! How fast the disks of a machine are, seen from inside.

use std::time::SystemTime;

use microagent_protocol::{
    Mebibytes,
    measure::{DiskTimes, task},
};

use super::{Benchmark, PerfReport, Rounds, Series, Unit, agent, idle};
use crate::{
    config::Config,
    error::{Error, Result},
    io::RunIo,
    options::RunOptions,
};

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The machine. Its command is not run.
    pub run: RunOptions,
    /// How much is read and written from end to end. The scratch disk must have room for it.
    pub size: Mebibytes,
    /// How often.
    pub rounds: Rounds,
}

impl DiskOptions {
    /// 64 MiB from end to end, five times after one that does not count, in a machine like that of `run`.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            size: Mebibytes(64),
            rounds: Rounds {
                warm_up: 1,
                iterations: 5,
            },
        }
    }
}

/// A name, in what it is told, and what of the times it is.
type One = (&'static str, Unit, fn(&DiskTimes) -> f64);

/// What is told of one measurement, in its order.
const SERIES: [One; 7] = [
    ("scratch_write", Unit::MebibytesPerSecond, |it| {
        rate(it.bytes, it.scratch_write)
    }),
    ("scratch_read", Unit::MebibytesPerSecond, |it| {
        rate(it.bytes, it.scratch_read)
    }),
    ("scratch_random_write", Unit::Milliseconds, |it| {
        ms(it.scratch_random_write)
    }),
    ("scratch_random_read", Unit::Milliseconds, |it| {
        ms(it.scratch_random_read)
    }),
    ("scratch_sync", Unit::Milliseconds, |it| ms(it.scratch_sync)),
    ("base_read", Unit::MebibytesPerSecond, |it| {
        rate(it.base_bytes, it.base_read)
    }),
    ("base_random_read", Unit::Milliseconds, |it| {
        ms(it.base_random_read)
    }),
];

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// MiB a second. What took no time at all is no measurement.
fn rate(bytes: u64, nanoseconds: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20) / (nanoseconds as f64 / 1e9)
}

pub(super) fn measure(config: &Config, options: &DiskOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let (size, room) = (options.size, options.run.resources().size_mib);
    if size.0 == 0 || size >= room {
        let reason = format!("{size} do not fit on a scratch disk of {room}");
        return Err(Error::invalid("--size", reason));
    }
    let size = size.0.to_string();
    let (samples, subject) = idle::machine(config, &options.run, |workspace| {
        options.rounds.measure(|| {
            let said = agent::run(workspace, &[task::DISK, &size], RunIo::captured())?;
            parse(&said).ok_or_else(|| agent::strange(workspace, &said))
        })
    })?;
    let series = SERIES
        .into_iter()
        .filter_map(|(name, unit, of)| {
            Series::new(name, unit, false, samples.iter().map(of).collect())
        })
        .collect();
    let warm_up = options.rounds.warm_up;
    Ok(PerfReport::new(
        Benchmark::Disk,
        at,
        subject,
        warm_up,
        series,
    ))
}

/// What the guest said: it may say anything.
fn parse(text: &str) -> Option<DiskTimes> {
    let times: DiskTimes = serde_json::from_str(text).ok()?;
    SERIES
        .iter()
        .all(|(_, _, of)| of(&times).is_finite() && of(&times) > 0.0)
        .then_some(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> DiskTimes {
        DiskTimes {
            bytes: 64 << 20,
            scratch_write: 500_000_000,
            scratch_read: 250_000_000,
            scratch_random_write: 20_000,
            scratch_random_read: 300_000,
            scratch_sync: 1_500_000,
            base_bytes: 10 << 20,
            base_read: 100_000_000,
            base_random_read: 250_000,
        }
    }

    #[test]
    fn times_become_what_people_compare() {
        let times = parse(&serde_json::to_string(&times()).unwrap()).unwrap();
        let values: Vec<_> = SERIES.iter().map(|(_, _, of)| of(&times)).collect();
        assert_eq!(values, [128.0, 256.0, 0.02, 0.3, 1.5, 100.0, 0.25]);
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let no_time = DiskTimes {
            base_read: 0,
            ..times()
        };
        let nothing = DiskTimes {
            bytes: 0,
            ..times()
        };
        for times in [no_time, nothing] {
            assert_eq!(parse(&serde_json::to_string(&times).unwrap()), None);
        }
        assert_eq!(parse("{}"), None);
        assert_eq!(parse(""), None);
    }
}
