//! What a launch is, and what comes of a boot that fails.

use std::os::unix::fs::PermissionsExt;

use microagent_protocol::{
    EndCause, ExecRole, State,
    supervisor::{Answer, Command as Ask, ErrorKind, EventKind, HostQuery, Request},
};

use crate::{
    client::{Workspace, one_shot, one_shot_by, one_shot_json, request},
    gone,
    vmm::ANEW,
};

pub(crate) fn one_shot_requests_are_answered_with_one_line() {
    let (answer, ok) = one_shot(Ask::Host(HostQuery::default()));
    assert!(ok && matches!(answer, Ok(Answer::Host(_))), "{answer:?}");
    let workspace = Workspace::new("normal");
    let (answer, ok) = one_shot(Ask::Check(Box::new(workspace.spec.clone())));
    assert!(
        ok && matches!(answer, Ok(Answer::Accepted(_))),
        "{answer:?}"
    );
    for (json, kind) in [
        (
            &br#"{"protocol":1,"command":"kill"}"#[..],
            ErrorKind::Invalid,
        ),
        (br#"{"protocol":1,"command":"fly"}"#, ErrorKind::Invalid),
        (br#"{"protocol":9,"command":"fly"}"#, ErrorKind::Unsupported),
        (b"nonsense", ErrorKind::Invalid),
        (b"", ErrorKind::Invalid),
    ] {
        let (answer, ok) = one_shot_json(json);
        assert!(!ok);
        assert_eq!(answer.unwrap_err().kind, kind);
    }
    let mut long = br#"{"protocol":1,"command":"host","id":""#.to_vec();
    long.resize(5 << 20, b'x');
    let (answer, ok) = one_shot_json(&long);
    assert!(!ok && answer.is_err());
}

pub(crate) fn a_bad_launch_is_refused_by_name_and_leaves_nothing() {
    let workspace = Workspace::new("normal");
    let good = &workspace.spec;
    let long = workspace.root.path().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    std::fs::set_permissions(&long, std::fs::Permissions::from_mode(0o700)).unwrap();
    let open = workspace.root.path().join("open");
    std::fs::create_dir(&open).unwrap();
    let bad = [
        ("kernel", {
            let mut s = good.clone();
            s.kernel = "kernel".into();
            s
        }),
        ("initramfs", {
            let mut s = good.clone();
            s.initramfs = "/no/such".into();
            s
        }),
        ("base_disk", {
            let mut s = good.clone();
            s.base_disk = "/dev/null".into();
            s
        }),
        ("directory", {
            let mut s = good.clone();
            s.directory = "/dev/null".into();
            s
        }),
        ("runtime_dir", {
            let mut s = good.clone();
            s.runtime_dir = long;
            s
        }),
        ("runtime_dir", {
            let mut s = good.clone();
            s.runtime_dir = open;
            s
        }),
        ("hostname", {
            let mut s = good.clone();
            s.hostname = "a b".into();
            s
        }),
        ("boot_timeout_ms", {
            let mut s = good.clone();
            s.boot_timeout_ms = 0;
            s
        }),
    ];
    for (field, spec) in bad {
        for command in [
            Ask::Check(Box::new(spec.clone())),
            Ask::Launch(Box::new(spec)),
        ] {
            let (answer, ok) = one_shot(command);
            let error = answer.unwrap_err();
            assert!(!ok);
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains(field), "{field}: {}", error.message);
        }
    }
    assert!(std::fs::read_dir(&good.directory).unwrap().next().is_none());
    let workspace = Workspace::new("no-backend");
    let (answer, ok) = one_shot(Ask::Launch(Box::new(workspace.spec.clone())));
    let error = answer.unwrap_err();
    assert!(!ok);
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert_eq!(error.remedy.as_deref(), Some("install something"));
}

pub(crate) fn a_driver_that_cannot_launch_fails_the_boot_twice() {
    let workspace = Workspace::new("no-launch");
    // It may be over before this connects; the story is told all the same.
    let mut machine = workspace.boot(true);
    let (state, cause, detail) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::BootFailed));
    assert!(detail.contains("attempt 1 is refused"), "{detail}");
    gone(&workspace, &machine);
}

pub(crate) fn a_process_that_waits_for_a_failed_boot_is_told_why() {
    let mut workspace = Workspace::new("hang");
    workspace.spec.boot_timeout_ms = 700;
    let mut machine = workspace.boot(true);
    let mut client = machine.client();
    let refused = client.ask(Ask::Exec(request(ExecRole::Workload, false, &["true"])));
    let error = refused.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Permanent);
    assert!(error.message.contains("boot_failed"), "{error:?}");
    assert!(error.detail.unwrap().contains("the guest boots"));
    machine.end();
    gone(&workspace, &machine);
}

pub(crate) fn a_guest_whose_monitor_has_a_user_of_its_own_is_heard() {
    if !rustix::process::geteuid().is_root() {
        testkit::skip_test("only root can use a jailer");
        return;
    }
    let workspace = Workspace::new("jailed");
    let mut machine = workspace.boot(true);
    let mut echoed = machine.exec(ExecRole::Workload, false, &["echo", "up"]);
    assert_eq!(echoed.finish().0, b"up\n");
    let (state, ..) = machine.end();
    assert_eq!(state, State::Halted);
    gone(&workspace, &machine);
}

pub(crate) fn a_boot_that_fails_once_is_tried_again() {
    for script in ["hang-once", "die-once", "panic-early-once"] {
        let mut workspace = Workspace::new(script);
        if script.starts_with("hang") {
            // What comes after it has no longer.
            workspace.spec.boot_timeout_ms = 3_000;
        }
        let mut machine = workspace.boot(true);
        let (stdout, ..) = machine
            .exec(ExecRole::Workload, false, &["echo", "up"])
            .finish();
        assert_eq!(stdout, b"up\n");
        machine.until(|kind| matches!(kind, EventKind::BootRetried { .. }));
        let (state, ..) = machine.end();
        assert_eq!(state, State::Halted, "{script}");
        gone(&workspace, &machine);
    }
}

pub(crate) fn a_boot_that_fails_twice_is_a_failed_boot_with_the_consoles_last_words() {
    for (script, word) in [
        ("hang", "not ready within 0.7 s"),
        ("die", "exit code 3"),
        ("panic-early", "panicked"),
        (
            "boot-failed",
            "could not mount the base disk: no such\u{fffd} device",
        ),
        ("rude", "broke the protocol"),
        ("garbage", "broke the protocol"),
    ] {
        let mut workspace = Workspace::new(script);
        workspace.spec.boot_timeout_ms = if script == "hang" { 700 } else { 15_000 };
        let mut machine = workspace.boot(true);
        let (state, cause, detail) = machine.end();
        assert_eq!(
            (state, cause),
            (State::Failed, EndCause::BootFailed),
            "{script}"
        );
        assert!(detail.contains(word), "{script}: {detail}");
        assert!(
            detail.contains("the guest boots\u{fffd}[2J"),
            "{script}: {detail}"
        );
        gone(&workspace, &machine);
    }
}

pub(crate) fn a_workspace_has_one_machine_at_a_time() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let mut second = workspace.spec.clone();
    second.runtime_dir = workspace.root.path().join("run-2");
    std::fs::create_dir(&second.runtime_dir).unwrap();
    std::fs::set_permissions(&second.runtime_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let (refused, exited_well) = one_shot(Ask::Launch(Box::new(second)));
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Conflict);
    assert!(!exited_well);
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

/// As on a Mac, whose frameworks do not survive a fork.
pub(crate) fn a_supervisor_that_begins_as_a_program_anew_is_like_any_other() {
    let mut workspace = Workspace::new("normal");
    workspace.program = ANEW;
    let mut machine = workspace.boot(true);
    let pid = i32::try_from(machine.launched.supervisor.pid).unwrap();
    let begun = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(
        begun.windows(6).any(|word| word == b"\0anew\0"),
        "it was executed"
    );
    let pid = rustix::process::Pid::from_raw(pid);
    assert_eq!(rustix::process::getsid(pid).unwrap(), pid.unwrap());
    let (stdout, ..) = machine
        .exec(ExecRole::Workload, false, &["echo", "x"])
        .finish();
    assert_eq!(stdout, b"x\n");
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Halted, EndCause::WorkloadFinished));
    gone(&workspace, &machine);

    // What it refuses once it has begun is the one answer, too.
    let workspace = Workspace::new("no-backend");
    let mut launch = Request::new(Ask::Launch(Box::new(workspace.spec.clone())));
    launch.id = "7".to_owned();
    let (answer, ok) = one_shot_by(ANEW, &serde_json::to_vec(&launch).unwrap());
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Unsupported);
    assert!(!ok);
}

pub(crate) fn a_clean_workload_ends_halted_and_the_next_boot_goes_on_counting() {
    let workspace = Workspace::new("normal");
    for boot in 0..2 {
        if boot == 1 {
            std::fs::create_dir(&workspace.spec.runtime_dir).unwrap();
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&workspace.spec.runtime_dir, private).unwrap();
        }
        let mut machine = workspace.boot(false);
        let (stdout, ..) = machine
            .exec(ExecRole::Workload, false, &["echo", "x"])
            .finish();
        assert_eq!(stdout, b"x\n");
        let first = machine.event().unwrap();
        assert_eq!(first.sequence, 1 + 7 * boot, "only this boot's events");
        let (state, cause, _) = machine.end();
        assert_eq!((state, cause), (State::Halted, EndCause::WorkloadFinished));
        gone(&workspace, &machine);
    }
    assert_eq!(workspace.events().len(), 14);
}
