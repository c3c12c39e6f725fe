//! What the host can run, proved on the host the tests run on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{initramfs, kernel};
use microagent_hypervisor::probe::{
    CHECK_KVM, CHECK_QEMU, CHECK_TCG, Depth, ProbeHost, Probed, probe,
};
use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{HostQuery, ProbeGuest, Verdict},
};

fn verdict(probed: &Probed, name: &str) -> Verdict {
    let checks = &probed.report.checks;
    let check = checks.iter().find(|check| check.name == name);
    check
        .unwrap_or_else(|| panic!("no check {name}: {checks:?}"))
        .verdict
}

#[test]
fn emulation_is_proved_kvm_only_by_a_guest_and_both_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let guest = ProbeGuest {
        kernel: kernel().0,
        initramfs: dir.path().join("initramfs"),
    };
    fs::write(&guest.initramfs, initramfs("probe")).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let host = ProbeHost {
        search_path: &path,
        firecracker: None,
        jailer: None,
        libexec: None,
        runtime_dir: dir.path(),
        depth: Depth::Prove,
    };
    let query = HostQuery {
        backend: BackendChoice::Auto,
        probe: Some(guest),
        cache_dir: Some(dir.path().to_owned()),
        fresh: false,
        probe_limit_ms: None,
    };
    let start = Instant::now();
    let first = probe(&host, &query);
    println!("{:?}\n{:#?}", start.elapsed(), first.report);
    assert_eq!(verdict(&first, CHECK_QEMU), Verdict::Ready);
    assert_eq!(verdict(&first, CHECK_TCG), Verdict::Ready);
    let kvm = first
        .report
        .checks
        .iter()
        .find(|c| c.name == CHECK_KVM)
        .unwrap();
    if kvm.verdict == Verdict::Ready {
        assert_eq!(first.report.chosen, Some(Backend::QemuKvm));
        assert!(kvm.detail.contains("hello"), "{kvm:?}");
    } else {
        assert_eq!(first.report.chosen, Some(Backend::QemuTcg));
        assert_eq!(kvm.verdict, Verdict::Unusable);
        assert!(kvm.remedy.is_some() && kvm.ms < 15_000, "{kvm:?}");
    }
    let start = Instant::now();
    let mut second = probe(&host, &query);
    let again = start.elapsed();
    println!("again {again:?}");
    assert!(again < Duration::from_secs(2), "{again:?}");
    second
        .report
        .checks
        .iter_mut()
        .for_each(|check| check.ms = 0);
    let mut first = first;
    first
        .report
        .checks
        .iter_mut()
        .for_each(|check| check.ms = 0);
    assert_eq!(first.report, second.report);
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "initramfs" && name != "host-probe.json")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_a_kernel_nothing_is_proved_and_the_command_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let host = ProbeHost {
        search_path: &path,
        firecracker: None,
        jailer: None,
        libexec: None,
        runtime_dir: dir.path(),
        depth: Depth::Prove,
    };
    let probed = probe(&host, &HostQuery::default());
    let waiting = |detail: &str| detail.contains("no kernel to boot yet");
    let checks = probed.report.checks.iter();
    let checks: Vec<_> = checks.filter(|check| waiting(&check.detail)).collect();
    assert!(checks.iter().any(|check| check.name == CHECK_TCG));
    for check in checks {
        let remedy = check.remedy.as_deref().unwrap_or_default();
        assert!(remedy.contains("`microagent kernel install`"), "{check:?}");
        assert_eq!(check.verdict, Verdict::Degraded);
    }
}

#[test]
fn without_qemu_nothing_is_chosen_and_the_package_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let host = ProbeHost {
        search_path: dir.path().as_os_str(),
        firecracker: None,
        jailer: None,
        libexec: None,
        runtime_dir: dir.path(),
        depth: Depth::Prove,
    };
    let probed = probe(&host, &HostQuery::default());
    assert_eq!(verdict(&probed, CHECK_QEMU), Verdict::Unusable);
    assert_eq!(probed.report.chosen, None);
    assert!(
        probed.report.reason.contains("qemu-system"),
        "{}",
        probed.report.reason
    );
    assert!(
        probed
            .driver(BackendChoice::Auto, NetworkMode::User, 2)
            .is_err()
    );
}
