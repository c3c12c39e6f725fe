//! What goes wrong, and what is told of it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use microagent_hypervisor::{
    Error, Machine,
    firecracker::{Firecracker, FirecrackerBinary, Snapshot, Tuning},
    network::Passt,
};
use microagent_protocol::{NetworkMode, VcpuCount};
use serde_json::{Value, json};

use crate::{
    fake,
    openapi::OpenApi,
    place::{Place, SOON},
};

/// Each request that the driver makes, refused with each status that the document has for it.
pub(crate) fn refusals() {
    let api = OpenApi::load();
    let launch = |place: &Place, driver: &Firecracker| driver.launch_firecracker(&place.spec);
    let each = |method: &str, path: &str, act: &dyn Fn(&Place) -> Result<(), Error>| {
        let statuses = api.failures(method, path);
        assert!(!statuses.is_empty(), "{path}");
        for status in statuses {
            let words = path.replace('/', "-");
            let place = Place::new(&format!("fault-{status}-{method}{words}"));
            let error = act(&place).unwrap_err();
            assert!(matches!(error, Error::Control { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains(&format!("Firecracker says: no {path} today")),
                "{text}"
            );
            assert_eq!(place.leftovers(), [""; 0]);
        }
    };
    // While it is told what it is to be.
    let passt = Passt::find(&std::env::var_os("PATH").unwrap()).unwrap();
    for (method, path) in [
        ("GET", "/"),
        ("PUT", "/metrics"),
        ("PUT", "/machine-config"),
        ("PUT", "/boot-source"),
        ("PUT", "/drives/disk1"),
        ("PUT", "/vsock"),
        ("PUT", "/entropy"),
        ("PUT", "/balloon"),
        ("PUT", "/actions"),
    ] {
        each(method, path, &|place| {
            let tuning = Tuning {
                metrics: Some(place.spec.kernel.clone()),
                balloon: true,
                ..Tuning::default()
            };
            launch(place, &place.driver().tuning(tuning)).map(drop)
        });
    }
    let networked = |place: &Place| {
        let mut spec = place.spec.clone();
        spec.network = NetworkMode::User;
        let driver = place.driver().passt(Some(passt.clone()));
        driver.launch_firecracker(&spec).map(drop)
    };
    match networked(&Place::new("networked")) {
        Err(Error::Unsupported(why)) => testkit::skip_part("a refused network card", why),
        _ => each("PUT", "/network-interfaces/eth0", &networked),
    }
    // While it runs.
    each("PATCH", "/vm", &|place| {
        launch(place, &place.driver())?.pause()
    });
    each("PATCH", "/balloon", &|place| {
        launch(place, &place.driver())?.inflate_balloon(1)
    });
    each("PUT", "/snapshot/create", &|place| {
        let machine = launch(place, &place.driver())?;
        machine.pause()?;
        machine.snapshot(&snapshot_in(place))
    });
    each("PUT", "/snapshot/load", &|place| {
        place
            .driver()
            .restore(&place.spec, &snapshot_in(place))
            .map(drop)
    });
}

fn snapshot_in(place: &Place) -> Snapshot {
    let directory = place.dir.path().join("snapshots");
    Snapshot {
        state: directory.join("state"),
        memory: directory.join("memory"),
    }
}

pub(crate) fn failures() {
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

pub(crate) fn binaries() {
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

pub(crate) fn unsupported() {
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
    // Each device has an interrupt line of its own, and of these there are not many.
    let few = place.spec.disks.clone();
    let scratch = few[1].clone();
    let room = if cfg!(target_arch = "aarch64") {
        92
    } else {
        17
    };
    place.spec.disks.resize(room - 1, scratch);
    let error = refuse(&place).to_string();
    for words in [
        &format!("has room for {room} devices"),
        &format!("it has {}", room + 1),
        "the backend qemu",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    place.spec.disks = few;
    place.spec.vsock.uds = place.dir.path().join("x".repeat(120));
    assert!(matches!(refuse(&place), Error::Invalid(_)));
    assert!(!place.spec.runtime_dir.join(fake::REQUESTS).exists());
}

pub(crate) fn document() {
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
