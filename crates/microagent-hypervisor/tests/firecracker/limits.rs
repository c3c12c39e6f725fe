//! What a monitor may take of its host, where cgroups of version 2 are to be had: in a guest of our own,
//! whatever the host has. The part in the guest is this program, too.

use std::{fs, path::Path};

use microagent_hypervisor::Machine;
use microagent_protocol::{ConfinementLayer, Mebibytes};

use crate::{
    common::Guest,
    escape,
    place::{Place, wait_for},
};

/// On the host: boots a guest, and the guest says what became of the test in it.
pub(crate) fn limited() {
    let guest = Guest::of_this_program();
    let machine = guest.launch();
    let console = guest.wait_for("GUEST-IS-DONE");
    println!("{console}");
    assert!(
        console.contains("PROGRAM moved=true Ok(ExitStatus(unix_wait_status(0)))"),
        "{console}"
    );
    drop(machine);
}

/// In the guest, as root.
pub(crate) fn inside() {
    let mut place = Place::new("multiplies");
    place.spec.memory = Mebibytes(96);
    let groups = Path::new("/sys/fs/cgroup");
    // Of a supervisor that was killed: no process of this guest has that number.
    let stale = groups.join("microagent-vm-4000000-0");
    fs::create_dir(&stale).unwrap();
    let machine = place.launch();
    assert!(!stale.exists());
    let held = machine.confinement();
    println!("{held}; missing: {:?}", held.missing);
    assert!(held.has(ConfinementLayer::Limits), "{held}");
    assert!(held.has(ConfinementLayer::Processes), "{held}");

    let own = fs::read_to_string(format!("/proc/{}/cgroup", machine.vmm().pid)).unwrap();
    let group = groups.join(own.trim().strip_prefix("0::/").unwrap());
    assert_eq!(group.parent(), Some(groups), "{own}");
    let limit = |file: &str| {
        fs::read_to_string(group.join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    // The guest's memory and what a monitor needs besides; its vCPUs and one more processor.
    assert_eq!(limit("memory.max"), ((96_u64 + 1536) << 20).to_string());
    assert_eq!(limit("cpu.max"), "300000 100000");
    assert_eq!(limit("pids.max"), "512");
    // One that wants more does not get it.
    wait_for("the end of its threads", || {
        place.console().contains(escape::MULTIPLIED)
    });
    let console = place.console();
    let (_, number) = console.split_once(escape::MULTIPLIED).unwrap();
    let number: u32 = number.split('.').next().unwrap().parse().unwrap();
    println!("{number} threads");
    assert!((400..512).contains(&number), "{number}");

    drop(machine);
    assert!(!group.exists());
    assert_eq!(place.leftovers(), [""; 0]);
}
