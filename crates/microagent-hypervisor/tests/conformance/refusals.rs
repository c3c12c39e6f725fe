//! What no driver takes.

use std::{fs, path::Path};

use microagent_hypervisor::{Error, MachineSpec};
use microagent_protocol::{Mebibytes, NetworkMode};

use crate::{common::Guest, subject::Subject};

pub(crate) fn all(subject: &Subject) {
    let guest = subject.guest("hello");
    let none = guest.dir.path().join("none");
    fs::write(&none, "not a kernel").unwrap();
    let missing = guest.dir.path().join("missing");

    let told = refused(subject, &guest, |spec| spec.kernel = none.clone());
    assert!(!told.to_string().is_empty());
    for change in [
        (|spec, path| spec.kernel = path) as fn(&mut MachineSpec, _),
        |spec, path| spec.initramfs = path,
    ] {
        let told = refused(subject, &guest, |spec| change(spec, missing.clone()));
        assert!(told.to_string().contains("missing"), "{told}");
        let told = refused(subject, &guest, |spec| change(spec, "relative".into()));
        assert!(matches!(told, Error::Invalid(_)), "{told}");
    }
    let told = refused(subject, &guest, |spec| spec.memory = Mebibytes(0));
    assert!(matches!(told, Error::Invalid(_)), "{told}");
    let disk = subject.guest("hello").with_disk("gone", false);
    fs::remove_file(disk.dir.path().join("gone")).unwrap();
    let told = refused(subject, &disk, |_| {});
    assert!(told.to_string().contains("gone"), "{told}");

    let can = subject.driver.capabilities();
    let plan = subject.driver.network_plan(NetworkMode::User);
    assert_eq!(plan.is_some(), can.user_network);
    if !can.user_network {
        let told = refused(subject, &guest, |spec| spec.network = NetworkMode::User);
        assert!(matches!(told, Error::Unsupported(_)), "{told}");
    }
}

/// What is said of a machine with this change; nothing of it may be left.
fn refused(subject: &Subject, guest: &Guest, change: impl FnOnce(&mut MachineSpec)) -> Error {
    let mut spec = guest.spec.clone();
    change(&mut spec);
    let Err(error) = subject.driver.launch(&spec) else {
        panic!("it launched: {spec:?}");
    };
    assert!(
        guest.leftovers().is_empty(),
        "{error}: {:?}",
        guest.leftovers()
    );
    assert!(!Path::new(&spec.vsock.uds).exists());
    error
}
