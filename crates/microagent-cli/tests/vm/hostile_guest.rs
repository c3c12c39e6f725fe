//! What a guest does to itself ends the guest, not the host.

use std::time::Duration;

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn a_thousand_orphans_are_reaped() {
    let sandbox = sandbox();
    // Each inner shell leaves an orphan to PID 1; afterwards no zombie may be left.
    let script = "i=0; while [ $i -lt 1000 ]; do (true &); i=$((i+1)); done
        n=0; while ps -o stat | grep -q '^Z'; do n=$((n+1)); [ $n -lt 100 ] || exit 9; sleep 0.1; done; echo clean; exit 5";
    let finished = sandbox
        .run([Sandbox::BUSYBOX, "sh", "-c", script])
        .run()
        .exited(5);
    assert_eq!(finished.out(), "clean\n");
}

#[test]
fn a_fork_bomb_ends_with_the_timeout() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            "--profile",
            "tiny",
            "--timeout",
            "20",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "bomb() { bomb | bomb & }; echo begun; bomb; sleep 600",
        ])
        .run();
    // The bomb may also starve its own shell, which then fails by itself.
    assert_ne!(finished.code(), 0, "{finished}");
    assert!(finished.out().starts_with("begun"), "{finished}");
    assert!(finished.took < Duration::from_secs(90), "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_memory_hog_is_killed_in_the_guest() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            "--profile",
            "tiny",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            // Let it take what the kernel would refuse, so that it is the killer who decides.
            "echo 1 > /proc/sys/vm/overcommit_memory; echo begun; exec tail -c 2000000000 /dev/zero",
        ])
        .run()
        .exited(137);
    assert_eq!(finished.out(), "begun\n");
    assert!(
        finished.err().contains("memory"),
        "the reason is named: {finished}"
    );
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_full_disk_is_the_guests_problem() {
    let sandbox = sandbox();
    let script =
        "dd if=/dev/zero of=/big bs=1M count=2000 2>&1 | grep -o 'No space left on device'";
    let finished = sandbox
        .run(["--profile", "tiny", Sandbox::BUSYBOX, "sh", "-c", script])
        .run()
        .success();
    assert_eq!(finished.out(), "No space left on device\n");
}

#[test]
fn a_kernel_panic_is_told_from_an_exit() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo begun; echo c > /proc/sysrq-trigger; sleep 600",
        ])
        .run();
    assert_eq!(finished.code(), 125, "{finished}");
    assert!(finished.err().contains("panic"), "{finished}");
    sandbox.leftovers().none(&[]);
}
