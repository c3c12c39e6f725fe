use std::{collections::BTreeMap, time::SystemTime};

use super::*;
use crate::{
    profile::Resources,
    result::{ImageInfo, KernelInfo},
};

pub(super) fn report(benchmark: Benchmark, series: &[(&str, bool, &[f64])]) -> PerfReport {
    let subject = Subject {
        image: ImageInfo {
            reference: "debian:12".to_owned(),
            digest: "sha256:0".to_owned(),
            platform: "linux/amd64".to_owned(),
        },
        kernel: KernelInfo {
            id: "k".to_owned(),
            release: "6".to_owned(),
            sha256: "0".to_owned(),
        },
        backend: None,
        resources: Resources {
            memory_mib: microagent_protocol::Mebibytes(512),
            cpu_count: 1,
            size_mib: microagent_protocol::Mebibytes(1024),
        },
        command: vec!["true".to_owned()],
    };
    let series = series.iter().filter_map(|(name, part, samples)| {
        Series::new(name, Unit::Milliseconds, *part, samples.to_vec())
    });
    let at = SystemTime::UNIX_EPOCH.into();
    PerfReport::new(benchmark, at, subject, 1, series.collect())
}

#[test]
fn a_difference_counts_where_the_median_and_the_least_agree() {
    let before = report(Benchmark::Boot, &[("total", false, &[100.0, 110.0, 120.0])]);
    for (now, verdict) in [
        ([100.0, 110.0, 120.0], PerfVerdict::Same),
        ([112.0, 125.0, 130.0], PerfVerdict::Worse),
        // A busy host: half of them took longer, and the least did not.
        ([101.0, 150.0, 190.0], PerfVerdict::Same),
        ([80.0, 90.0, 400.0], PerfVerdict::Better),
        ([108.0, 119.0, 120.0], PerfVerdict::Same),
    ] {
        let now = report(Benchmark::Boot, &[("total", false, &now)]);
        let comparison = now.compare(&before, 0.1).unwrap();
        assert_eq!(comparison.verdict, verdict, "{comparison:?}");
        assert_eq!(now.compare(&now, 0.0).unwrap().verdict, PerfVerdict::Same);
    }
}

#[test]
fn the_whole_decides_and_not_its_parts() {
    let before = report(
        Benchmark::Boot,
        &[("total", false, &[100.0]), ("vmm", true, &[10.0])],
    );
    let now = report(
        Benchmark::Boot,
        &[("total", false, &[100.0]), ("vmm", true, &[20.0])],
    );
    let comparison = now.compare(&before, 0.1).unwrap();
    assert_eq!(comparison.verdict, PerfVerdict::Same);
    let verdicts: BTreeMap<_, _> = comparison
        .changes
        .iter()
        .map(|change| (change.name.as_str(), (change.verdict, change.ratio)))
        .collect();
    assert_eq!(verdicts["vmm"], (PerfVerdict::Worse, Some(2.0)));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let boot = report(Benchmark::Boot, &[("total", false, &[1.0])]);
    let exec = report(Benchmark::Exec, &[("total", false, &[1.0])]);
    let other = report(Benchmark::Boot, &[("else", false, &[1.0])]);
    assert!(boot.compare(&exec, 0.1).is_err());
    assert!(boot.compare(&other, 0.1).is_err());
    for tolerance in [-0.1, f64::NAN, 10.0] {
        assert!(boot.compare(&boot, tolerance).is_err());
    }
}

#[test]
fn a_saved_report_is_read_again_and_anything_else_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.json");
    let saved = report(Benchmark::Exec, &[("total", false, &[0.1, 0.2, 0.7])]);
    saved.save(&path).unwrap();
    let read = PerfReport::read(&path).unwrap();
    assert_eq!(read.subject, saved.subject);
    assert_eq!(
        read.compare(&saved, 0.01).unwrap().verdict,
        PerfVerdict::Same
    );

    let text = std::fs::read_to_string(&path).unwrap();
    for (bad, words) in [
        (text.replace("\"format\": 1", "\"format\": 2"), "format 2"),
        ("{}".to_owned(), "no saved report"),
        ("\u{0}".to_owned(), "no saved report"),
        (text[..text.len() / 2].to_owned(), "no saved report"),
        (text.replace("\"samples\"", "\"sample\""), "damaged"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let error = PerfReport::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("saved.json"),
            "{error}"
        );
    }
    assert!(PerfReport::read(&folder.path().join("none")).is_err());
}

#[test]
fn rounds_are_bounded_and_warm_up_does_not_count() {
    let rounds = Rounds {
        warm_up: 2,
        iterations: 3,
    };
    let mut count = 0;
    let measured = rounds.measure(|| {
        count += 1;
        Ok(count)
    });
    assert_eq!(measured.unwrap(), [3, 4, 5]);
    for (warm_up, iterations, good) in [(0, 1, true), (0, 0, false), (0, MOST + 1, false)] {
        let rounds = Rounds {
            warm_up,
            iterations,
        };
        assert_eq!(rounds.check().is_ok(), good);
    }
}

#[test]
fn of_rates_more_is_better() {
    let rate = |samples: &[f64]| {
        let series = Series::new("way", Unit::MebibytesPerSecond, false, samples.to_vec());
        let mut report = report(Benchmark::Net, &[("total", false, &[1.0])]);
        report.series = series.into_iter().collect();
        report
    };
    let before = rate(&[90.0, 100.0, 110.0]);
    for (samples, verdict) in [
        (&[45.0, 50.0, 55.0][..], PerfVerdict::Worse),
        (&[180.0, 200.0, 220.0], PerfVerdict::Better),
        // The best is as good as it was: the host did something else meanwhile.
        (&[20.0, 30.0, 110.0], PerfVerdict::Same),
        (&[95.0, 101.0, 108.0], PerfVerdict::Same),
    ] {
        let compared = rate(samples).compare(&before, 0.1).unwrap();
        assert_eq!(compared.verdict, verdict, "{samples:?}");
    }
}
