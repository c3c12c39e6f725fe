//! `run` exits as a container user expects.

use testkit::Sandbox;

use crate::sandbox;

#[test]
fn the_guests_exit_code_is_ours() {
    let sandbox = sandbox();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 42", 42),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
    ] {
        let finished = sandbox.run([Sandbox::BUSYBOX, "sh", "-c", script]).run();
        assert_eq!(finished.code(), code, "{script}: {finished}");
    }
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_missing_program_is_127_and_one_that_cannot_run_is_126() {
    let sandbox = sandbox();
    let missing = sandbox
        .run([Sandbox::BUSYBOX, "no-such-program"])
        .run()
        .exited(127);
    assert!(missing.err().contains("no-such-program"), "{missing}");

    let plain = sandbox
        .run([Sandbox::BUSYBOX, "/etc/passwd"])
        .run()
        .exited(126);
    assert!(plain.err().contains("/etc/passwd"), "{plain}");

    let directory = sandbox.run([Sandbox::BUSYBOX, "/etc"]).run().exited(126);
    assert!(directory.err().contains("/etc"), "{directory}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn an_image_without_a_shell_says_so() {
    let sandbox = sandbox();
    let finished = sandbox
        .run(["--image", Sandbox::SHELL_LESS, "--exec", "echo hello"])
        .run()
        .exited(127);
    assert!(finished.err().contains("/bin/sh"), "{finished}");
    assert!(finished.err().contains("no shell"), "{finished}");

    let direct = sandbox
        .run([Sandbox::SHELL_LESS, "/app/echo", "hello"])
        .run()
        .success();
    assert_eq!(direct.out(), "hello\n");
}

#[test]
fn our_own_failures_are_125() {
    let sandbox = sandbox();
    let unknown = sandbox
        .run(["--pull", "never", "no-such-image:1", "true"])
        .run()
        .exited(125);
    assert!(unknown.err().contains("no-such-image"), "{unknown}");
    let tiny = sandbox
        .run(["--memory", "1", Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    assert!(tiny.err().contains("Give it more memory"), "{tiny}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_timeout_is_124_and_leaves_nothing() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            "--timeout",
            "12",
            Sandbox::BUSYBOX,
            "sh",
            "-c",
            "echo begun; sleep 600",
        ])
        .run()
        .exited(124);
    assert_eq!(finished.out(), "begun\n", "{finished}");
    assert!(finished.took.as_secs() < 60, "{finished}");
    sandbox.leftovers().none(&[]);
}
