//! What Firecracker's own type can do beyond the contract, with a real Firecracker and a guest.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use microagent_hypervisor::{
    Exit, Machine,
    firecracker::{Firecracker, Snapshot, Tuning},
    vsock,
};
use microagent_protocol::NetworkMode;

use crate::{
    common::Guest,
    life::{GUEST_PORT, HOST_PORT, beats_on},
    subject::Subject,
};

/// What the guest last said it has free.
fn free_kib(guest: &Guest) -> u64 {
    let console = guest.console();
    let mut said = console
        .lines()
        .filter_map(|line| line.strip_prefix("FREE-KIB ")?.parse().ok());
    said.next_back().unwrap()
}

fn wait_until(subject: &Subject, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + subject.patience;
    while !there() {
        assert!(
            Instant::now() < deadline,
            "the guest's memory stays as it is"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// A guest that is squeezed, frozen into files, killed, thawed out of them, and told to go.
pub(crate) fn whole(subject: &Subject) {
    let mut guest = subject.guest("conform").with_disk("scratch", false);
    if subject.driver.capabilities().user_network {
        guest.spec.network = NetworkMode::User;
    }
    let directory = guest.dir.path().join("snapshots");
    fs::create_dir(&directory).unwrap();
    let snapshot = Snapshot {
        state: directory.join("state"),
        memory: directory.join("memory"),
    };
    let driver: Firecracker = subject.firecracker().tuning(Tuning {
        balloon: true,
        snapshots: Some(directory),
        ..Tuning::default()
    });
    let _hello = vsock::listen(&guest.spec.vsock.uds, HOST_PORT).unwrap();
    let machine = driver.launch_firecracker(&guest.spec).unwrap();
    guest.wait_for("READY");
    beats_on(&guest);

    let free = free_kib(&guest);
    machine.inflate_balloon(16).unwrap();
    wait_until(subject, || free_kib(&guest) + 8 * 1024 < free);
    machine.inflate_balloon(0).unwrap();
    wait_until(subject, || free_kib(&guest) + 8 * 1024 > free);

    machine.pause().unwrap();
    let started = Instant::now();
    machine.snapshot(&snapshot).unwrap();
    let written = started.elapsed();
    machine.resume().unwrap();
    beats_on(&guest);
    machine.kill().unwrap();
    assert_eq!(
        machine.wait(subject.patience).unwrap(),
        Some(Exit::Signal(9))
    );
    drop(machine);

    let started = Instant::now();
    let machine = driver.restore(&guest.spec, &snapshot).unwrap();
    let restored = started.elapsed();
    let deadline = Instant::now() + subject.patience;
    drop(vsock::connect(machine.vsock(), GUEST_PORT, deadline).unwrap());
    println!(
        "a snapshot took {written:?}, its start {restored:?}, and its guest answered after {:?}",
        started.elapsed()
    );
    beats_on(&guest);
    machine.ctrl_alt_del().unwrap();
    assert_eq!(machine.wait(subject.patience).unwrap(), Some(Exit::Code(0)));
    assert!(machine.ended_by_guest());
}
