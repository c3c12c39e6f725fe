//! What is no part of a VM boundary is recognised and refused with what to do instead.

use crate::sandbox;
use testkit::Sandbox;

#[test]
fn container_flags_are_refused_with_guidance() {
    let sandbox = sandbox();
    for (flags, hint) in [
        (&["--privileged"][..], "root in its own kernel"),
        (&["--cap-add", "NET_ADMIN"], "own kernel"),
        (&["--device", "/dev/fuse"], "device"),
        (&["--pid", "host"], "own kernel"),
        (&["--ipc", "host"], "own kernel"),
        (&["--userns", "host"], "own kernel"),
        (&["--net", "host"], "--network user"),
        (&["--network", "bridge"], "--network user"),
        (&["-v", "/tmp:/data"], "cp"),
        (&["--mount", "type=bind,src=/tmp,dst=/data"], "cp"),
    ] {
        let mut invocation = sandbox.run([]);
        for flag in flags {
            invocation = invocation.arg(*flag);
        }
        let finished = invocation.args([Sandbox::BUSYBOX, "true"]).run();
        assert_eq!(finished.code(), 2, "{flags:?}: {finished}");
        assert!(
            finished.err().contains(flags[0].trim_start_matches('-')),
            "{flags:?} is named: {finished}"
        );
        assert!(
            finished.err().contains(hint),
            "{flags:?} has guidance: {finished}"
        );
    }
    for command in ["compose", "pod", "build"] {
        let finished = sandbox.microagent([command, "up"]).run();
        assert_eq!(finished.code(), 2, "{command}: {finished}");
        assert!(
            finished.err().contains(command) && finished.err().contains("microagent"),
            "{finished}"
        );
    }
}

#[test]
fn the_same_flags_after_the_image_belong_to_the_guest() {
    let sandbox = sandbox();
    let finished = sandbox
        .run([
            Sandbox::BUSYBOX,
            "echo",
            "--privileged",
            "-v",
            "/x:/y",
            "--help",
        ])
        .run()
        .success();
    assert_eq!(finished.out(), "--privileged -v /x:/y --help\n");
}

#[test]
fn mistakes_are_usage_errors_that_name_them() {
    let sandbox = sandbox();
    for (arguments, named) in [
        (&["run", "--memory", "lots", "busybox"][..], "lots"),
        (&["run", "--cpus", "0", "busybox"], "0"),
        (&["run", "-e", "=x", "busybox"], "=x"),
        (&["run", "--name", "Bad_Name", "busybox"], "Bad_Name"),
        (&["run", "UPPER/Case:tag"], "UPPER/Case"),
        (&["run"], "IMAGE"),
        (&["rnu", "x"], "run"),
    ] {
        let mut invocation = sandbox.microagent([]);
        for argument in arguments {
            invocation = invocation.arg(*argument);
        }
        let finished = invocation.run();
        assert_eq!(finished.code(), 2, "{arguments:?}: {finished}");
        assert!(finished.err().contains(named), "{arguments:?}: {finished}");
    }
}

#[test]
fn a_state_directory_that_cannot_be_is_told_with_what_to_do() {
    let sandbox = sandbox();
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = file.path().join("state");
    let below = below.to_str().unwrap();
    let finished = sandbox
        .microagent(["run", "--state-dir", below, Sandbox::BUSYBOX, "true"])
        .run()
        .exited(125);
    assert!(
        finished.err().contains(below) && finished.err().contains("MICROAGENT_HOME"),
        "{finished}"
    );
}

#[test]
fn help_never_acts() {
    let sandbox = sandbox();
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["run", "--rm", "--help"],
        &["images", "pull", "--help"],
        &["doctor", "-h"],
    ] {
        let mut invocation = sandbox.microagent([]);
        for argument in arguments {
            invocation = invocation.arg(*argument);
        }
        let finished = invocation.run().success();
        assert!(finished.out().contains("Usage"), "{finished}");
    }
}
