//! What a Firecracker is told, and what a machine does then.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use microagent_hypervisor::{
    Error, Exit, Machine,
    firecracker::{CpuTemplate, HugePages, RateLimiter, Snapshot, TokenBucket, Tuning},
};
use microagent_protocol::ConfinementLayer;
use serde_json::json;

use crate::{
    fake,
    place::{Place, SOON, wait_for},
};

pub(crate) fn told() {
    let place = Place::new("told");
    let machine = place.launch();
    let asked: Vec<_> = place
        .requests()
        .into_iter()
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    assert_eq!(
        asked,
        [
            "GET /",
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/disk0",
            "PUT /drives/disk1",
            "PUT /vsock",
            "PUT /entropy",
            "PUT /actions",
        ]
    );
    assert_eq!(
        place.body("/machine-config"),
        json!({"vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false})
    );
    let boot = place.body("/boot-source");
    let line = boot["boot_args"].as_str().unwrap();
    for word in ["console=ttyS0", "reboot=k", "panic=1"] {
        assert!(line.split(' ').any(|have| have == word), "{line}");
    }
    assert!(
        !line.contains("acpi=off") && !line.contains("told"),
        "{line}"
    );
    let base = place.body("/drives/disk0");
    assert_eq!(
        (&base["is_read_only"], &base["cache_type"]),
        (&json!(true), &json!("Unsafe"))
    );
    let flat = Path::new(base["path_on_host"].as_str().unwrap());
    assert!(flat.ends_with("base.flat"), "{base}");
    let joined = ["one", "two"].map(|name| name.repeat(512)[512..].to_owned());
    assert!(fs::read_to_string(flat).unwrap() == joined.concat());
    let scratch = place.body("/drives/disk1");
    assert_eq!(
        (&scratch["is_read_only"], &scratch["cache_type"]),
        (&json!(false), &json!("Writeback"))
    );
    let held = machine.confinement();
    assert!(
        held.has(ConfinementLayer::NoNewPrivileges) && held.has(ConfinementLayer::NoCapabilities),
        "{held}"
    );
    // The fake has no filter, and what is not there is not claimed.
    assert!(!held.has(ConfinementLayer::SystemCalls), "{held}");
    // A kernel without Landlock is said to have none; the fake checks that a read-only disk is one.
    drop(machine);
    assert_eq!(place.leftovers(), [""; 0]);
}

pub(crate) fn controlled() {
    let place = Place::new("controlled");
    let machine = place.launch();
    wait_for("the guest's greeting", || {
        place.console().contains(fake::GREETING)
    });
    let mut port = machine.console().unwrap();
    port.output.set_read_timeout(Some(SOON)).unwrap();
    port.input.write_all(b"hello\n").unwrap();
    let mut line = String::new();
    BufReader::new(&port.output).read_line(&mut line).unwrap();
    assert_eq!(line, "<hello>\n");

    let mut stream = UnixStream::connect(machine.vsock()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"CONNECT 1024\nping").unwrap();
    let mut answer = [0; 18];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1073741824\nping");

    for _ in 0..2 {
        machine.pause().unwrap();
        assert_eq!(place.body("/vm"), json!({"state": "Paused"}));
    }
    machine.resume().unwrap();
    assert_eq!(place.body("/vm"), json!({"state": "Resumed"}));
    machine.sever().unwrap();
    assert_eq!(place.body("/vm"), json!({"state": "Paused"}));
    assert!(UnixStream::connect(machine.vsock()).is_err());

    assert_eq!(machine.wait(Duration::ZERO).unwrap(), None);
    machine.kill().unwrap();
    assert_eq!(machine.wait(SOON).unwrap(), Some(Exit::Signal(9)));
    machine.kill().unwrap();
    assert!(matches!(machine.pause(), Err(Error::Control { .. })));
    drop(machine);
    assert_eq!(place.leftovers(), [""; 0]);
}

pub(crate) fn tuned() {
    let place = Place::new("tuned");
    let bucket = TokenBucket {
        size: 1 << 20,
        refill_time: 100,
    };
    let metrics = place.dir.path().join("metrics");
    fs::write(&metrics, "").unwrap();
    let machine = place
        .driver()
        .tuning(Tuning {
            smt: true,
            huge_pages: Some(HugePages::TwoMebibytes),
            cpu_template: Some(CpuTemplate::T2),
            disk_limit: Some(RateLimiter {
                bandwidth: Some(bucket),
                ops: None,
            }),
            network_limit: None,
            metrics: Some(metrics.clone()),
            balloon: true,
            snapshots: None,
        })
        .launch_firecracker(&place.spec)
        .unwrap();
    let config = place.body("/machine-config");
    assert_eq!(
        (
            &config["smt"],
            &config["huge_pages"],
            &config["cpu_template"]
        ),
        (&json!(true), &json!("2M"), &json!("T2"))
    );
    assert!(place.body("/drives/disk0").get("rate_limiter").is_none());
    assert_eq!(
        place.body("/drives/disk1")["rate_limiter"],
        json!({"bandwidth": {"size": 1_048_576, "refill_time": 100}})
    );
    assert!(
        fs::read_to_string(&metrics)
            .unwrap()
            .contains("utc_timestamp_ms")
    );
    machine.inflate_balloon(64).unwrap();
    assert_eq!(place.body("/balloon"), json!({"amount_mib": 64}));
    machine.ctrl_alt_del().unwrap();
    assert_eq!(
        place.body("/actions"),
        json!({"action_type": "SendCtrlAltDel"})
    );
}

pub(crate) fn snapshots() {
    let place = Place::new("snapshots");
    let directory = place.dir.path().join("snapshots");
    let snapshot = Snapshot {
        state: directory.join("state"),
        memory: directory.join("memory"),
    };
    let driver = place.driver().tuning(Tuning {
        snapshots: Some(directory),
        ..Tuning::default()
    });
    let machine = driver.launch_firecracker(&place.spec).unwrap();
    let error = machine.snapshot(&snapshot).unwrap_err().to_string();
    assert!(
        error.contains("Cannot create a snapshot of a running microVM"),
        "{error}"
    );
    machine.pause().unwrap();
    machine.snapshot(&snapshot).unwrap();
    drop(machine);
    fs::remove_file(place.spec.runtime_dir.join(fake::REQUESTS)).unwrap();

    let machine = driver.restore(&place.spec, &snapshot).unwrap();
    let asked: Vec<_> = place
        .requests()
        .into_iter()
        .map(|request| request.1)
        .collect();
    assert_eq!(asked, ["/", "/snapshot/load"]);
    drop(machine);
    fs::remove_file(&snapshot.memory).unwrap();
    let error = driver
        .restore(&place.spec, &snapshot)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("No such file"), "{error}");
}
