//! Whether a host is said to run Firecracker: by a guest that said hello, in the time there is.

use std::{
    ffi::OsStr,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_hypervisor::probe::{CHECK_FIRECRACKER, Depth, ProbeHost, probe};
use microagent_protocol::{
    Backend, BackendChoice, FrameKind, NetworkMode,
    frame::write_json,
    guest::{GUEST_PROTOCOL, GuestMessage, HELLO_PORT},
    supervisor::{HostCheck, HostQuery, ProbeGuest, Verdict},
};

use crate::place::Place;

/// What the probe calls its machine.
pub(crate) const NAME: &str = "probe";

/// How long the fake's guest takes: longer than a guest usually may.
const SLOW: Duration = Duration::from_millis(5_500);

/// The guest that is slow, as its host sees it.
pub(crate) fn hello(vsock: &Path) {
    std::thread::sleep(SLOW);
    let mut port = vsock.as_os_str().to_owned();
    port.push(format!("_{HELLO_PORT}"));
    // Who waited no longer is not there any more.
    let Ok(mut stream) = UnixStream::connect(PathBuf::from(port)) else {
        return;
    };
    let hello = GuestMessage::Hello {
        protocol: GUEST_PROTOCOL,
        kernel_release: "9.9-slow".to_owned(),
        kernel_ms: 1,
    };
    write_json(&mut stream, FrameKind::Control, &hello).unwrap();
    stream.flush().unwrap();
    std::thread::sleep(SLOW);
}

pub(crate) fn proved() {
    let place = Place::new(NAME);
    let firecracker = place.program("firecracker");
    let host = ProbeHost {
        search_path: OsStr::new("/nonexistent"),
        firecracker: Some(&firecracker),
        jailer: None,
        libexec: None,
        runtime_dir: &place.spec.runtime_dir,
        depth: Depth::Choose,
    };
    let found = |probe_limit_ms: Option<u64>| {
        let query = HostQuery {
            backend: BackendChoice::Only(Backend::Firecracker),
            probe: Some(ProbeGuest {
                kernel: place.spec.kernel.clone(),
                initramfs: place.spec.initramfs.clone(),
            }),
            cache_dir: Some(place.dir.path().to_owned()),
            fresh: false,
            probe_limit_ms,
        };
        let found = probe(&host, &query);
        let driver = found
            .driver(query.backend, NetworkMode::Isolated, 2)
            .is_ok();
        let mut checks = found.report.checks.into_iter();
        let check: HostCheck = checks
            .find(|check| check.name == CHECK_FIRECRACKER)
            .unwrap();
        println!("{check:#?}");
        assert_eq!(check.verdict == Verdict::Ready, driver);
        check
    };
    let early = found(None);
    assert_eq!(early.verdict, Verdict::Unusable);
    if early.detail.contains("/dev/kvm does not open") {
        testkit::skip_test(early.detail);
        return;
    }
    assert!(
        early.detail.contains("did not happen within 5s"),
        "{early:?}"
    );
    let remedy = early.remedy.unwrap();
    assert!(remedy.contains("MICROAGENT_BOOT_TIMEOUT"), "{remedy}");
    // What was given up for lack of time is tried again by who has more.
    let slow = found(Some(60_000));
    assert_eq!(slow.verdict, Verdict::Ready);
    assert!(
        slow.detail.contains("kernel 9.9-slow said hello after"),
        "{slow:?}"
    );
    // And then it holds for everybody.
    let kept = found(None);
    assert_eq!((kept.verdict, kept.detail), (slow.verdict, slow.detail));
    assert!(kept.ms < 1_000, "{}", kept.ms);
    let left = place.leftovers();
    assert_eq!(left, [""; 0]);
}
