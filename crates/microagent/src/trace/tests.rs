use microagent_protocol::{
    EndCause, ExitStatus, ProcessIdentity, State, Timestamp,
    supervisor::{Event, EventKind},
};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

fn at(ms: u64) -> Timestamp {
    Timestamp(
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(ms),
    )
}

fn boot() -> Vec<Event> {
    let vmm = ProcessIdentity {
        pid: 4321,
        start_ticks: 1,
        boot_id: String::new(),
    };
    let kinds = [
        (30, EventKind::VmmStarted { vmm, ms: 30 }),
        (
            530,
            EventKind::GuestHello {
                kernel_release: "6.12".to_owned(),
                ms: 530,
                kernel_ms: 480,
            },
        ),
        (600, EventKind::GuestReady { ms: 600 }),
        (650, EventKind::WorkloadStarted { ms: 650 }),
        (
            900,
            EventKind::WorkloadExited {
                exit: ExitStatus::Exited { code: 0 },
                ms: 900,
            },
        ),
        (
            940,
            EventKind::Ended {
                cause: EndCause::WorkloadFinished,
                detail: None,
                ms: 940,
            },
        ),
    ];
    let event = |(ms, kind)| Event {
        sequence: 1,
        at: at(ms),
        state: State::Running,
        kind,
    };
    kinds.map(event).into()
}

#[test]
fn a_boot_is_phases_without_gaps_but_for_the_way_to_the_workload() {
    let mut phases = MachinePhases::of("agent-1");
    let told: Vec<_> = boot()
        .iter()
        .filter_map(|event| phases.take(event))
        .map(|it| {
            (
                it.name,
                it.from,
                u64::try_from(it.took.as_millis()).unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("vmm", at(0), 30),
            ("kernel", at(30), 500),
            ("agent", at(530), 70),
            ("workload", at(650), 250),
            ("teardown", at(900), 40),
        ]
    );
}

#[test]
fn spans_and_what_supervisors_told_are_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.json");
    let trace = Trace::new();
    trace.write(&path).unwrap();
    let subscriber = tracing_subscriber::registry().with(trace.layer());
    tracing::subscriber::with_default(subscriber, || {
        let outer = tracing::info_span!("run", workspace = "agent-1").entered();
        tracing::info_span!("image", bytes = 7_u64, image = %"x").in_scope(|| {
            tracing::info!("no phase");
        });
        let mut phases = MachinePhases::of("agent-1");
        boot().iter().for_each(|event| phases.see(event));
        drop(outer);
        tracing::info_span!(target: "other", "foreign").in_scope(|| {});
    });
    trace.write(&path).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = written["traceEvents"].as_array().unwrap();
    let names = |phase: &str| -> Vec<&str> {
        let of = events.iter().filter(|event| event["ph"] == phase);
        of.map(|event| event["name"].as_str().unwrap()).collect()
    };
    assert_eq!(
        names("X"),
        [
            "image", "vmm", "kernel", "agent", "workload", "teardown", "run"
        ]
    );
    let mut labels = names("M");
    labels.sort_unstable();
    assert_eq!(labels, ["process_name", "process_name", "thread_name"]);
    testkit::chrome::check(&written);
    let found = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
    let (run, image, kernel) = (found("run"), found("image"), found("kernel"));
    assert_eq!(run["args"]["workspace"], "agent-1");
    assert_eq!(
        (&image["args"]["bytes"], &image["args"]["depth"]),
        (&json!(7), &json!(1))
    );
    let (begin, length) = (run["ts"].as_i64().unwrap(), run["dur"].as_i64().unwrap());
    let inner = image["ts"].as_i64().unwrap() + image["dur"].as_i64().unwrap();
    assert!(begin <= image["ts"].as_i64().unwrap() && inner <= begin + length);
    assert_eq!(
        (&kernel["pid"], &kernel["dur"]),
        (&json!(4321), &json!(500_000))
    );
    assert_eq!(written["otherData"]["lost"], 0);
}

#[test]
fn short_phases_are_within_those_around_them() {
    let ends = |from: u64, to: u64| {
        let (from, took) = rounded(Duration::from_nanos(from), Duration::from_nanos(to));
        (from, from + took)
    };
    for from in 0..1_000 {
        let (outer, inner) = (ends(from, 10_800), ends(from + 100, 10_700));
        assert!(
            outer.0 <= inner.0 && inner.1 <= outer.1,
            "{outer:?} {inner:?}"
        );
    }
    assert_eq!(ends(1_900, 1_950), (1, 1));
}

#[test]
fn what_is_no_file_is_not_replaced() {
    Trace::new().write(Path::new("/dev/null")).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    assert!(
        Trace::new()
            .write(Path::new("/no/such/directory/t.json"))
            .is_err()
    );
}
