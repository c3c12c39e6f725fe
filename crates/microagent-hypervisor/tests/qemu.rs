//! The QEMU driver on real guests. Needs QEMU and the distribution's kernel
//! package, and nothing else of the host.

mod common;

use std::time::{Duration, Instant};

use common::{Guest, alive};
use microagent_hypervisor::{Exit, Machine};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_boots_speaks_and_ends() {
    let guest = Guest::new("hello");
    let start = Instant::now();
    let machine = guest.launch();
    let launched = start.elapsed();
    let console = guest.wait_for("GUEST-IS-DONE");
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Code(0)));
    println!(
        "launched {launched:?}, ended {:?}\n{console}",
        start.elapsed()
    );
    assert!(machine.run_state().reset);
    assert!(!console.contains("MODULE-FAILED"), "{console}");
    let pid = machine.vmm().pid;
    drop(machine);
    assert!(!alive(pid));
    assert!(guest.leftovers().is_empty());
}

#[test]
fn a_killed_machine_is_gone_and_killing_it_again_is_no_error() {
    let guest = Guest::new("beat");
    let machine = guest.launch();
    guest.wait_for("BEAT 1");
    assert_eq!(machine.wait(Duration::ZERO).unwrap(), None);
    machine.kill().unwrap();
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Signal(9)));
    assert_eq!(machine.wait(MINUTE).unwrap(), Some(Exit::Signal(9)));
    machine.kill().unwrap();
    assert!(!alive(machine.vmm().pid));
}
