//! Benchmarks: what they measure of real machines, and the verdict on a baseline.

use std::{path::Path, time::Duration};

use serde_json::Value;
use testkit::{Sandbox, eventually};

use crate::sandbox;

/// The median of a series.
fn p50(report: &Value, name: &str) -> f64 {
    let series = report["series"].as_array().unwrap();
    let found = series.iter().find(|series| series["name"] == name);
    found.unwrap()["summary"]["p50"].as_f64().unwrap()
}

/// The names of the phases in a trace, those of the machine with that word before them, and how long
/// each took, in milliseconds.
fn phases(trace: &Path) -> Vec<(String, f64)> {
    let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    testkit::chrome::check(&trace);
    let events = trace["traceEvents"].as_array().unwrap().iter();
    let whole = events.filter(|event| event["ph"] == "X");
    let phase = |event: &Value| {
        let name = event["name"].as_str().unwrap();
        let name = match event["cat"] == "machine" {
            true => format!("machine: {name}"),
            false => name.to_owned(),
        };
        (name, event["dur"].as_f64().unwrap() / 1000.0)
    };
    whole.map(phase).collect()
}

/// Which of `wanted` is not among `phases`.
fn missing<'a>(phases: &[(String, f64)], wanted: &[&'a str]) -> Vec<&'a str> {
    let is_there = |name: &str| phases.iter().any(|(phase, _)| phase == name);
    let wanted = wanted.iter().filter(|name| !is_there(name));
    wanted.copied().collect()
}

/// Writes the report at `from` to `to` as if everything had taken `part` of it.
fn scale(from: &Path, to: &Path, part: f64) {
    let mut report: Value = serde_json::from_slice(&std::fs::read(from).unwrap()).unwrap();
    for series in report["series"].as_array_mut().unwrap() {
        for sample in series["samples"].as_array_mut().unwrap() {
            *sample = Value::from(sample.as_f64().unwrap() * part);
        }
    }
    std::fs::write(to, serde_json::to_vec(&report).unwrap()).unwrap();
}

/// Memory that the guest frees is the host's again, and nobody asked for it.
fn gives_back(sandbox: &Sandbox) {
    const TAKEN: u32 = 120;
    let resident = || {
        let metrics = sandbox.microagent(["metrics", "measured"]).run().success();
        let name = "microagent_vmm_resident_memory_bytes{";
        let line = metrics.out();
        let line = line.lines().find(|line| line.starts_with(name)).unwrap();
        let bytes: f64 = line.split(' ').next_back().unwrap().parse().unwrap();
        bytes / f64::from(1 << 20)
    };
    let exec = |script: &str| {
        let exec = sandbox.microagent(["exec", "measured", "--", "sh", "-c", script]);
        exec.run().success();
    };
    let bytes = TAKEN << 20;
    exec(&format!("head -c {bytes} /dev/zero > /dev/shm/file"));
    let taken = resident();
    let much = f64::from(TAKEN) * 0.8;
    assert!(taken > much, "{taken} MiB");
    exec("rm /dev/shm/file");
    eventually(Duration::from_secs(60), "memory is given back", || {
        (resident() < taken - much).then_some(())
    });
}

#[test]
fn a_boot_is_made_of_its_parts() {
    let sandbox = sandbox();
    let kernels = sandbox
        .microagent(["kernel", "list"])
        .json()
        .run()
        .success();
    let kernel = kernels.parsed()["kernels"][0]["id"].clone();
    let finished = sandbox
        .microagent(["--json", "perf", "boot", "-n", "1", "--warm-up", "0"])
        .args(["--memory", "300", "--cpus", "1", "--network", "isolated"])
        .args([
            "--backend",
            "qemu-tcg",
            "--kernel",
            kernel.as_str().unwrap(),
        ])
        .args([Sandbox::BUSYBOX, "sh", "-c", "echo hello"])
        .run()
        .success();
    let report = finished.parsed();
    assert_eq!(report["benchmark"], "boot", "{finished}");
    assert_eq!(report["iterations"], 1);
    assert_eq!(report["subject"]["command"][2], "echo hello");
    let parts = ["prepare", "spawn", "vmm", "kernel", "agent", "workload"];
    let sum: f64 = parts.iter().map(|part| p50(&report, part)).sum();
    let total = p50(&report, "total");
    assert!((sum - total).abs() < 0.01 * total, "{sum} {total}");
    assert!(p50(&report, "kernel") > 0.0 && p50(&report, "teardown") > 0.0);
    // A command that fails measures nothing. Where the time went is told all the same.
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.json");
    let failed = sandbox
        .microagent(["perf", "boot", "-n", "1", "--warm-up", "0"])
        .args(["--trace-out", trace.to_str().unwrap()])
        .args([Sandbox::BUSYBOX, "false"])
        .run()
        .exited(1);
    assert!(failed.err().contains("false: it exited with 1"), "{failed}");
    let phases = phases(&trace);
    let ours = ["run", "image", "kernel", "workspace", "spawn", "machine"];
    let machines = ["vmm", "kernel", "agent", "workload", "teardown"];
    let machines = machines.map(|phase| format!("machine: {phase}"));
    let machines = machines.each_ref().map(String::as_str);
    let missing = missing(&phases, &[&ours[..], &machines[..]].concat());
    assert!(missing.is_empty(), "{missing:?} of {phases:?}");
    let took = |name: &str| phases.iter().find(|(phase, _)| phase == name).unwrap().1;
    assert!(took("machine: agent") > 0.0 && took("machine") < took("run"));
    let within: f64 = machines.iter().map(|phase| took(phase)).sum();
    assert!(within < took("run"), "{within} {phases:?}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn commands_are_measured_and_compared_and_a_machines_memory_is_seen() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("saved.json");
    let path = saved.to_str().unwrap();
    sandbox
        .microagent(["create", "measured", Sandbox::BUSYBOX])
        .run()
        .success();
    let trace = directory.path().join("trace.json");
    sandbox
        .microagent(["start", "measured", "--trace-out", trace.to_str().unwrap()])
        .env("MICROAGENT_LOG", "warn,microagent_hypervisor=debug")
        .run()
        .success();
    let traced = phases(&trace);
    let wanted = [
        "start",
        "verify",
        "spawn",
        "machine: vmm",
        "machine: kernel",
        "machine: agent",
    ];
    assert!(missing(&traced, &wanted).is_empty(), "{traced:?}");
    // What was wanted of it is in the supervisor's own log, and nothing else.
    let log = |words: &[&str]| {
        let logs = sandbox.microagent(["logs", "--supervisor", "measured"]);
        logs.words(words).run().success().out()
    };
    let all = log(&[]);
    assert!(all.contains(" DEBUG microagent_hypervisor::"), "{all}");
    assert!(!all.contains(" INFO "), "{all}");
    assert_eq!(log(&["--tail", "1"]).lines().count(), 1);
    assert_eq!(log(&["--since", "2100-01-01T00:00:00Z"]), "");
    let nowhere = ["--trace-out", "/no/such/directory/trace.json", "list"];
    sandbox.microagent(nowhere).run().exited(1);
    let odd = sandbox.microagent(["list"]).env("MICROAGENT_LOG", "loud");
    let odd = odd.run().exited(1).err();
    assert!(
        odd.contains("MICROAGENT_LOG") && odd.contains("loud"),
        "{odd}"
    );
    let exec = |words: &[&str]| {
        sandbox
            .microagent(["perf", "exec", "-n", "5", "--warm-up", "2"])
            .words(words)
            .args(["measured", "true"])
    };
    let plot = directory.path().join("plot.svg");
    let plot = plot.to_str().unwrap();
    let saving = ["--json", "--save", path, "--plot", plot];
    let report = exec(&saving).run().success().parsed();
    assert!(std::fs::read_to_string(plot).unwrap().contains("<svg"));
    assert_eq!(report["iterations"], 5);
    let total = p50(&report, "total");
    assert!(total > 0.0 && p50(&report, "start") <= total);

    let metrics = sandbox.microagent(["metrics"]).run().success().out();
    for begin in [
        "microagent_workspace_state{workspace=\"measured\",state=\"running\"} 1\n",
        "microagent_vmm_cpu_seconds_total{workspace=\"measured\"} ",
        "microagent_vmm_resident_memory_bytes{workspace=\"measured\"} ",
    ] {
        assert_eq!(metrics.matches(begin).count(), 1, "{begin}\n{metrics}");
    }
    let samples = testkit::prometheus::read(&metrics);
    let told: std::collections::BTreeSet<_> = samples.iter().map(|one| &one.name).collect();
    assert_eq!(
        told.len(),
        samples.len(),
        "one workspace has one of each: {metrics}"
    );
    assert!(
        samples
            .iter()
            .all(|one| one.labels["workspace"] == "measured")
    );
    sandbox.microagent(["metrics", "nobody"]).run().exited(1);
    gives_back(&sandbox);
    let picture = directory.path().join("exec.svg");
    exec(&["--plot", picture.to_str().unwrap()]).run().success();
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert_eq!(drawn.matches("<circle").count(), 5, "{drawn}");

    let baseline = directory.path().join("baseline.json");
    let compared = ["--baseline", baseline.to_str().unwrap()];
    // Ten times what it took is better on any host, a tenth of it worse.
    for (part, code, verdict) in [(10.0, 0, "better"), (0.1, 3, "worse")] {
        scale(&saved, &baseline, part);
        let finished = exec(&[&compared[..], &["--json"]].concat())
            .run()
            .exited(code);
        assert_eq!(
            finished.parsed()["comparison"]["verdict"],
            verdict,
            "{finished}"
        );
    }
    let shown = exec(&compared).run().exited(3).out();
    assert!(
        shown.contains("p95") && shown.ends_with("worse\n"),
        "{shown}"
    );
    // Twice of it is none where ten times are tolerated.
    scale(&saved, &baseline, 0.5);
    let tolerant = exec(&[&compared[..], &["--tolerance", "9"]].concat());
    drop(tolerant.run().success());
    let damaged = exec(&["--baseline", "/dev/null"]).run().exited(1);
    assert!(damaged.err().contains("no saved report"), "{damaged}");
    sandbox
        .microagent(["delete", "--force", "measured"])
        .run()
        .success();

    let finished = sandbox
        .microagent(["--json", "perf", "footprint", "-n", "1", Sandbox::BUSYBOX])
        .run()
        .success();
    let report = finished.parsed();
    let mib = |name: &str| p50(&report, name) / f64::from(1 << 20);
    assert!((1.0..64.0).contains(&mib("supervisor_rss")), "{finished}");
    // The guest's memory is in it.
    assert!((32.0..1024.0).contains(&mib("vmm_rss")), "{finished}");
    assert!(mib("total_pss") <= mib("total_rss"));
    let finished = sandbox
        .microagent(["--json", "perf", "steady", "-n", "2", Sandbox::BUSYBOX])
        .run()
        .success();
    let report = finished.parsed();
    assert_eq!(report["iterations"], 2);
    // A supervisor has nothing to wake it when nothing happens; a guest has its clock.
    assert!(p50(&report, "supervisor_wakeups") <= 1.0, "{finished}");
    assert!(p50(&report, "vmm_cpu") < 90.0, "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn disks_and_ways_are_measured_in_an_image_without_programs() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("hello"), "no program").unwrap();
    let archive = file("nothing.tar");
    let packed = std::process::Command::new("tar")
        .args(["-C", &file(""), "-cf", &archive, "hello"])
        .status();
    assert!(packed.unwrap().success());
    let trace = file("trace.json");
    let import = ["images", "import", "--name", "nothing:1"];
    let import = sandbox.microagent(import);
    import
        .args(["--trace-out", &trace, &archive])
        .run()
        .success();
    let traced = phases(Path::new(&trace));
    let wanted = ["import", "convert", "disk"];
    assert!(missing(&traced, &wanted).is_empty(), "{traced:?}");
    let measure = |what: &str, words: &[&str]| {
        let once = sandbox.microagent(["--json", "perf", what, "-n", "1", "--warm-up", "0"]);
        let report = once.words(words).args(["nothing:1"]).run().success();
        let report = report.parsed();
        assert_eq!(report["benchmark"], what);
        let series = report["series"].as_array().unwrap();
        let names = series.iter().map(|one| one["name"].as_str().unwrap());
        let names = names.collect::<Vec<_>>().join(" ");
        assert!(
            series
                .iter()
                .all(|one| one["samples"][0].as_f64().unwrap() > 0.0)
        );
        names
    };
    let (saved, plot) = (file("disk.json"), file("disk.svg"));
    let names = measure(
        "disk",
        &[
            "--size",
            "4",
            "--memory",
            "300",
            "--network",
            "isolated",
            "--save",
            &saved,
            "--plot",
            &plot,
        ],
    );
    assert_eq!(
        names,
        "scratch_write scratch_read scratch_random_write scratch_random_read scratch_sync \
         base_read base_random_read"
    );
    assert!(Path::new(&saved).exists() && Path::new(&plot).exists());
    assert_eq!(
        measure("net", &[]),
        "user_round_trip user_into_guest user_out_of_guest \
         published_round_trip published_into_guest published_out_of_guest"
    );
    assert_eq!(
        measure("vsock", &["--network", "isolated"]),
        "round_trip into_guest out_of_guest"
    );
    // What the scratch disk has no room for is not begun.
    let full = ["perf", "disk", "--size", "100G", "nothing:1"];
    let full = sandbox.microagent(full).run().exited(1);
    assert!(full.err().contains("--size"), "{full}");
    sandbox.leftovers().none(&[]);
}
