//! A run ends when it should, and leaves nothing.

use std::time::Duration;

use rustix::process::Signal;
use testkit::{Running, Sandbox, eventually};

use crate::sandbox;

/// A run whose guest prints `begun` and then handles signals as `script` says.
fn begun(sandbox: &Sandbox, script: &str) -> Running {
    let running = sandbox.run([Sandbox::BUSYBOX, "sh", "-c", script]).start();
    eventually(Duration::from_secs(60), "the guest's first word", || {
        running.output_so_far().starts_with(b"begun").then_some(())
    });
    running
}

#[test]
fn ctrl_c_once_reaches_the_workload() {
    let sandbox = sandbox();
    let script = "trap 'echo interrupted; exit 7' INT; echo begun; while :; do sleep 1; done";
    let running = begun(&sandbox, script);
    running.signal(Signal::INT);
    let finished = running.finish().exited(7);
    assert_eq!(finished.out(), "begun\ninterrupted\n");
    sandbox.leftovers().none(&[]);
}

#[test]
fn sigterm_reaches_the_workload() {
    let sandbox = sandbox();
    let running = begun(&sandbox, "echo begun; exec sleep 600");
    running.signal(Signal::TERM);
    let finished = running.finish().exited(143);
    assert!(finished.took < Duration::from_secs(90), "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn ctrl_c_twice_tears_down_what_will_not_listen() {
    let sandbox = sandbox();
    let script = "trap 'echo ignored' INT; echo begun; while :; do sleep 1; done";
    let running = begun(&sandbox, script);
    running.signal(Signal::INT);
    eventually(Duration::from_secs(30), "the guest's refusal", || {
        String::from_utf8_lossy(&running.output_so_far())
            .contains("ignored")
            .then_some(())
    });
    running.signal(Signal::INT);
    let finished = running.finish();
    assert_eq!(finished.code(), 130, "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_killed_client_takes_everything_with_it() {
    let sandbox = sandbox();
    let running = begun(&sandbox, "echo begun; exec sleep 600");
    assert!(
        !sandbox.leftovers().processes_named("qemu").is_empty(),
        "a VMM runs"
    );
    running.signal(Signal::KILL);
    assert!(running.finish().was_signaled());
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_killed_supervisor_takes_the_vmm_with_it_and_the_client_says_so() {
    let sandbox = sandbox();
    let running = begun(&sandbox, "echo begun; exec sleep 600");
    let supervisors = sandbox.leftovers().processes_named("microagent-supervisor");
    assert_eq!(supervisors.len(), 1, "one supervisor");
    let pid = rustix::process::Pid::from_raw(supervisors[0].try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let finished = running.finish().exited(125);
    assert!(finished.err().contains("supervisor"), "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_killed_vmm_is_reported() {
    let sandbox = sandbox();
    let running = begun(&sandbox, "echo begun; exec sleep 600");
    let vmms = sandbox.leftovers().processes_named("qemu-system");
    assert_eq!(vmms.len(), 1, "one VMM");
    let pid = rustix::process::Pid::from_raw(vmms[0].try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let finished = running.finish().exited(125);
    assert_eq!(finished.out(), "begun\n");
    assert!(!finished.err().is_empty(), "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn poweroff_inside_ends_the_run() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo begun; poweroff -f; sleep 600",
        ])
        .run();
    assert_eq!(finished.out(), "begun\n");
    assert!(finished.took < Duration::from_secs(90), "{finished}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_kept_workspace_stays_and_a_name_is_taken_once() {
    let sandbox = sandbox();
    let name = "e2e-kept";
    let dir = sandbox.state().join("workspaces").join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    let kept = sandbox
        .run_as(
            name,
            [
                "--keep",
                Sandbox::BUSYBOX,
                "sh",
                "-c",
                "echo kept > /root/file",
            ],
        )
        .run()
        .success();
    drop(kept);
    for file in [
        "manifest.json",
        "scratch.ext4",
        "events.jsonl",
        "result.json",
        "console.log",
    ] {
        assert!(dir.join(file).exists(), "{file} of the kept workspace");
    }
    let taken = sandbox
        .run_as(name, [Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    assert!(taken.err().contains(name), "{taken}");
    sandbox.leftovers().none(&[]);
    std::fs::remove_dir_all(&dir).unwrap();
}
