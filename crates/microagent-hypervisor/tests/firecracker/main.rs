//! The Firecracker driver against a program that implements Firecracker's API from its published
//! document. The processes, sockets and confinement are real; there is no guest. The test program
//! is the tests and that program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod confined;
mod escape;
mod fake;
mod jailer;
mod openapi;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_disk::DiskList;
use microagent_hypervisor::{
    ConsoleSpec, DiskForm, DiskSpec, Error, Exit, Machine, MachineSpec, VsockSpec,
    firecracker::{
        CpuTemplate, Firecracker, FirecrackerBinary, FirecrackerMachine, HugePages, RateLimiter,
        Snapshot, TokenBucket, Tuning,
    },
};
use microagent_protocol::{ConfinementLayer, ConfinementMode, Mebibytes, NetworkMode, VcpuCount};
use openapi::OpenApi;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let name = Path::new(&arguments[0])
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    // The test program itself is called `firecracker-` and a hash of 16 digits.
    if name == "firecracker" || name.starts_with("firecracker-1.") {
        fake::main(&name, &arguments[1..]);
    }
    if name == "jailer" {
        jailer::main(&arguments[1..]);
    }
    let tests: &[testkit::harness::Test] = &[
        ("a_machine_is_told_all_of_it_in_order", told),
        ("a_running_machine_is_controlled", controlled),
        ("its_settings_reach_firecracker", tuned),
        ("snapshots_are_written_and_loaded", snapshots),
        ("every_documented_refusal_reaches_the_user", refusals),
        (
            "a_firecracker_that_fails_is_told_apart_and_leaves_nothing",
            failures,
        ),
        (
            "a_monitor_that_was_taken_over_gets_nowhere",
            confined::escapes,
        ),
        (
            "a_network_card_is_a_tap_in_its_namespaces",
            confined::networked,
        ),
        ("a_jailer_gives_it_a_user_of_its_own", confined::jailed),
        (
            "confinement_that_is_required_is_there_or_nothing_runs",
            confined::required,
        ),
        ("only_a_firecracker_that_fits_is_taken", binaries),
        ("what_it_cannot_do_is_refused_before_it_starts", unsupported),
        ("the_published_document_is_enforced", document),
    ];
    testkit::harness::run(tests);
}

/// A machine's files in a directory of their own.
struct Place {
    dir: tempfile::TempDir,
    spec: MachineSpec,
}

impl Place {
    fn new(behaviour: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("fc")
            .tempdir_in("/tmp")
            .unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["run", "snapshots"] {
            fs::create_dir(at(name)).unwrap();
        }
        let disk = |name: &str, read_only| {
            fs::write(at(name), name).unwrap();
            DiskSpec {
                path: at(name),
                form: DiskForm::Raw,
                serial: name.to_owned(),
                read_only,
            }
        };
        // In two files, which this backend cannot join.
        let mut list = DiskList::new();
        for (name, digest) in [("one", "1"), ("two", "2")] {
            fs::write(at(name), name.repeat(512)).unwrap();
            assert!(list.push(name, &digest.repeat(64), 512, 1024));
        }
        fs::write(at("base.vmdk"), list.text()).unwrap();
        let base = DiskSpec {
            path: at("base.vmdk"),
            form: DiskForm::Joined,
            serial: "base".to_owned(),
            read_only: true,
        };
        fs::write(at("kernel"), "kernel").unwrap();
        fs::write(at("initramfs"), "initramfs").unwrap();
        let spec = MachineSpec {
            name: behaviour.to_owned(),
            memory: Mebibytes(256),
            vcpus: VcpuCount::try_from(2).unwrap(),
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            disks: vec![base, disk("scratch", false)],
            network: NetworkMode::Isolated,
            confinement: ConfinementMode::Auto,
            vsock: VsockSpec {
                cid: 3,
                uds: at("run/v"),
            },
            console: ConsoleSpec {
                log: at("console.log"),
                limit: 64 * 1024,
            },
            runtime_dir: at("run"),
            attempt: 0,
        };
        Self { dir, spec }
    }

    /// This program under another name.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if !path.exists() {
            // A copy: what it may execute is a file of its own.
            fs::hard_link(std::env::current_exe().unwrap(), &path)
                .or_else(|_| fs::copy(std::env::current_exe().unwrap(), &path).map(drop))
                .unwrap();
        }
        path
    }

    fn driver(&self) -> Firecracker {
        Firecracker::new(FirecrackerBinary::at(&self.program("firecracker")).unwrap())
            .start_limit(SOON)
    }

    fn launch(&self) -> FirecrackerMachine {
        self.driver()
            .launch_firecracker(&self.spec)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// What was asked: method, path, body.
    fn requests(&self) -> Vec<(String, String, Value)> {
        let text = fs::read_to_string(self.spec.runtime_dir.join(fake::REQUESTS)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn body(&self, path: &str) -> Value {
        let requests = self.requests();
        let found = requests.into_iter().rfind(|(_, asked, _)| asked == path);
        found.unwrap_or_else(|| panic!("{path} was not asked")).2
    }

    fn console(&self) -> String {
        fs::read_to_string(&self.spec.console.log).unwrap_or_default()
    }

    /// What is left of a machine that is gone.
    fn leftovers(&self) -> Vec<String> {
        fs::read_dir(&self.spec.runtime_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != fake::REQUESTS)
            .collect()
    }
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !there() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn told() {
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

fn controlled() {
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

fn tuned() {
    let place = Place::new("tuned");
    let bucket = TokenBucket {
        size: 1 << 20,
        refill_time: 100,
    };
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
    machine.inflate_balloon(64).unwrap();
    assert_eq!(place.body("/balloon"), json!({"amount_mib": 64}));
    machine.ctrl_alt_del().unwrap();
    assert_eq!(
        place.body("/actions"),
        json!({"action_type": "SendCtrlAltDel"})
    );
}

fn snapshots() {
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

fn refusals() {
    let api = OpenApi::load();
    for (method, path) in [
        ("PUT", "/machine-config"),
        ("PUT", "/boot-source"),
        ("PUT", "/drives/disk1"),
        ("PUT", "/vsock"),
        ("PUT", "/entropy"),
        ("PUT", "/actions"),
    ] {
        let statuses = api.failures(method, path);
        assert!(!statuses.is_empty(), "{path}");
        for status in statuses {
            let word = path.trim_start_matches('/').replace('/', "-");
            let place = Place::new(&format!("fault-{status}-{word}"));
            let error = place
                .driver()
                .launch_firecracker(&place.spec)
                .map(drop)
                .unwrap_err();
            assert!(matches!(error, Error::Control { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains(&format!("Firecracker says: no {path} today")),
                "{text}"
            );
            assert_eq!(place.leftovers(), [""; 0]);
        }
    }
}

fn failures() {
    let launch = |behaviour: &str, limit: Duration| {
        let place = Place::new(behaviour);
        let started = Instant::now();
        let error = place
            .driver()
            .start_limit(limit)
            .launch_firecracker(&place.spec)
            .map(drop)
            .unwrap_err();
        assert_eq!(place.leftovers(), [""; 0], "{error}");
        (error, started.elapsed())
    };
    let (error, _) = launch("dies", SOON);
    assert!(matches!(error, Error::VmmStart { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("exit code 148") && text.contains("Cannot open /dev/kvm"),
        "{text}"
    );

    let (error, took) = launch("silent", Duration::from_secs(1));
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(took < SOON, "{took:?}");

    let (error, _) = launch("crashes", SOON);
    let text = error.to_string();
    assert!(
        // As the first process of its namespace it cannot be ended by its own SIGABRT, and goes by
        // the fault that abort(3) ends in then.
        (text.contains("signal 6") || text.contains("signal 11"))
            && text.contains("start the machine"),
        "{text}"
    );

    let (error, took) = launch("hangs", SOON);
    assert!(matches!(error, Error::Control { .. }), "{error:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

fn binaries() {
    let place = Place::new("binaries");
    let named = place.program("firecracker");
    let nowhere = std::ffi::OsStr::new("/nonexistent");
    let old = FirecrackerBinary::at(&place.program("firecracker-1.9.3")).unwrap_err();
    assert!(
        old.to_string().contains("1.9.3") && old.to_string().contains("1.10.0"),
        "{old}"
    );
    assert!(FirecrackerBinary::at(&place.program("firecracker-1.10.0")).is_ok());
    let other = FirecrackerBinary::at(Path::new("/bin/true")).unwrap_err();
    assert!(other.to_string().contains("version"), "{other}");
    let missing = FirecrackerBinary::find(None, nowhere, None)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("MICROAGENT_FIRECRACKER"), "{missing}");
    let beside = FirecrackerBinary::find(None, nowhere, named.parent()).unwrap();
    assert_eq!(beside.path(), named);
    // What is named is taken, or nothing is.
    assert!(FirecrackerBinary::find(Some(Path::new("/no/such")), nowhere, named.parent()).is_err());
    let on_path = place.dir.path().join("bin");
    fs::create_dir(&on_path).unwrap();
    symlink(&named, on_path.join("firecracker")).unwrap();
    let found = FirecrackerBinary::find(None, on_path.as_os_str(), None).unwrap();
    assert_eq!(found.version().to_string(), "1.12.1");
}

fn unsupported() {
    let mut place = Place::new("unsupported");
    place.spec.vcpus = VcpuCount::try_from(33).unwrap();
    let refuse = |place: &Place| {
        place
            .driver()
            .launch_firecracker(&place.spec)
            .map(drop)
            .unwrap_err()
    };
    let error = refuse(&place);
    assert!(
        matches!(error, Error::Unsupported(_)) && error.to_string().contains("32"),
        "{error}"
    );
    place.spec.vcpus = VcpuCount::try_from(1).unwrap();
    place.spec.network = NetworkMode::User;
    let error = refuse(&place);
    assert!(
        matches!(error, Error::Unsupported(_)) && error.to_string().contains("install passt"),
        "{error}"
    );
    place.spec.network = NetworkMode::Isolated;
    place.spec.vsock.uds = place.dir.path().join("x".repeat(120));
    assert!(matches!(refuse(&place), Error::Invalid(_)));
    assert!(!place.spec.runtime_dir.join(fake::REQUESTS).exists());
}

fn document() {
    let api = OpenApi::load();
    let put = |path: &str, body: Value| api.check_request("PUT", path, Some(&body));
    put("/vsock", json!({"guest_cid": 3, "uds_path": "/v"})).unwrap();
    for (path, body) in [
        ("/vsock", json!({"uds_path": "/v"})),
        ("/vsock", json!({"guest_cid": "3", "uds_path": "/v"})),
        (
            "/vsock",
            json!({"guest_cid": 3, "uds_path": "/v", "more": 1}),
        ),
        (
            "/machine-config",
            json!({"vcpu_count": 33, "mem_size_mib": 1}),
        ),
        ("/actions", json!({"action_type": "Fly"})),
        ("/nothing", json!({})),
    ] {
        assert!(put(path, body.clone()).is_err(), "{path} {body}");
    }
    assert!(api.check_request("POST", "/vsock", None).is_err());
    assert!(api.check_request("PUT", "/vsock", None).is_err());
}
