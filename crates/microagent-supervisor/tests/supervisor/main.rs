//! The supervisor as a process, driven over its real sockets, against a
//! scripted VMM and against real machines. The test program is all of it:
//! tests, supervisor and scripted VMM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod client;
mod copies;
mod machines;
mod protocol;
mod vmm;
mod wiring;

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use client::{Client, Workspace, alive, one_shot, one_shot_json, request};
use microagent_protocol::{
    EndCause, ExecRole, ExitStatus, FrameKind, ShellFate, ShellOrigin, StartFailure, State,
    frame::{write_frame, write_json},
    supervisor::{Answer, Command as Ask, ErrorKind, EventKind, HostQuery, Request},
};
use vmm::{Scripted, wait_for};

const SOON: Duration = Duration::from_secs(10);

fn main() {
    microagent_supervisor::entry_with(&Scripted);
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(vmm::MARKER) => vmm::main(&arguments[2..]),
        Some("__launcher") => launcher(&arguments[2]),
        Some("__stranger") => stranger(&arguments[2]),
        _ => {}
    }
    let scripted: &[testkit::harness::Test] = &[
        (
            "files_are_copied_both_ways",
            copies::files_are_copied_both_ways,
        ),
        (
            "a_copy_that_is_cut_is_no_copy",
            copies::a_copy_that_is_cut_is_no_copy,
        ),
        (
            "a_hostile_guest_ends_with_its_copy",
            copies::a_hostile_guest_ends_with_its_copy,
        ),
        (
            "nothing_is_copied_where_nothing_runs",
            copies::nothing_is_copied_where_nothing_runs,
        ),
        (
            "a_stream_to_the_guest_serves_one_session_after_the_other",
            a_stream_to_the_guest_serves_one_session_after_the_other,
        ),
        (
            "a_workload_runs_and_its_end_ends_the_machine",
            a_workload_runs_and_its_end_ends_the_machine,
        ),
        (
            "a_clean_workload_ends_halted_and_the_next_boot_goes_on_counting",
            a_clean_workload_ends_halted_and_the_next_boot_goes_on_counting,
        ),
        (
            "much_output_and_input_is_relayed_exactly",
            much_output_and_input_is_relayed_exactly,
        ),
        (
            "a_program_that_is_not_there_is_told_apart",
            a_program_that_is_not_there_is_told_apart,
        ),
        (
            "one_shot_requests_are_answered_with_one_line",
            one_shot_requests_are_answered_with_one_line,
        ),
        (
            "a_bad_launch_is_refused_by_name_and_leaves_nothing",
            a_bad_launch_is_refused_by_name_and_leaves_nothing,
        ),
        (
            "a_driver_that_cannot_launch_fails_the_boot_twice",
            a_driver_that_cannot_launch_fails_the_boot_twice,
        ),
        (
            "a_process_that_waits_for_a_failed_boot_is_told_why",
            a_process_that_waits_for_a_failed_boot_is_told_why,
        ),
        (
            "a_guest_whose_monitor_has_a_user_of_its_own_is_heard",
            a_guest_whose_monitor_has_a_user_of_its_own_is_heard,
        ),
        (
            "a_boot_that_fails_once_is_tried_again",
            a_boot_that_fails_once_is_tried_again,
        ),
        (
            "a_boot_that_fails_twice_is_a_failed_boot_with_the_consoles_last_words",
            a_boot_that_fails_twice_is_a_failed_boot_with_the_consoles_last_words,
        ),
        (
            "control_commands_are_idempotent_and_true_when_answered",
            control_commands_are_idempotent_and_true_when_answered,
        ),
        (
            "halt_is_clean_and_stop_is_not",
            halt_is_clean_and_stop_is_not,
        ),
        (
            "a_guest_that_hears_nothing_cannot_hold_up_control",
            a_guest_that_hears_nothing_cannot_hold_up_control,
        ),
        ("a_time_limit_holds", a_time_limit_holds),
        (
            "ends_from_inside_are_told_apart",
            ends_from_inside_are_told_apart,
        ),
        (
            "a_vmm_killed_by_another_hand_is_noticed",
            a_vmm_killed_by_another_hand_is_noticed,
        ),
        (
            "a_killed_supervisor_takes_the_vmm_along_and_the_next_boot_records_it",
            a_killed_supervisor_takes_the_vmm_along_and_the_next_boot_records_it,
        ),
        (
            "an_owned_machine_dies_with_the_program_that_launched_it",
            an_owned_machine_dies_with_the_program_that_launched_it,
        ),
        (
            "an_owner_that_lets_go_ends_the_machine_and_a_second_one_is_refused",
            an_owner_that_lets_go_ends_the_machine_and_a_second_one_is_refused,
        ),
        (
            "a_workload_outlives_its_client_while_its_owner_is_there",
            a_workload_outlives_its_client_while_its_owner_is_there,
        ),
        (
            "a_machines_own_workload_needs_no_client",
            a_machines_own_workload_needs_no_client,
        ),
        (
            "a_workspace_has_one_machine_at_a_time",
            a_workspace_has_one_machine_at_a_time,
        ),
        (
            "a_command_ends_with_its_client_and_signals_reach_it",
            a_command_ends_with_its_client_and_signals_reach_it,
        ),
        (
            "sessions_are_many_but_bounded",
            sessions_are_many_but_bounded,
        ),
        (
            "a_subscriber_that_reads_nothing_blocks_nobody",
            a_subscriber_that_reads_nothing_blocks_nobody,
        ),
        ("another_user_is_turned_away", another_user_is_turned_away),
        (
            "nonsense_on_the_control_socket_is_answered_and_survived",
            nonsense_on_the_control_socket_is_answered_and_survived,
        ),
        ("a_second_workload_is_refused", a_second_workload_is_refused),
        (
            "a_line_is_relayed_with_what_became_of_the_shell",
            a_line_is_relayed_with_what_became_of_the_shell,
        ),
        (
            "who_gave_up_waiting_gets_nothing_run",
            who_gave_up_waiting_gets_nothing_run,
        ),
        (
            "a_terminated_supervisor_ends_its_machine",
            a_terminated_supervisor_ends_its_machine,
        ),
    ];
    let tests = [scripted, wiring::TESTS, machines::TESTS].concat();
    testkit::harness::run(&tests);
}

/// Everything the supervisor made is gone, and so is it.
fn gone(workspace: &Workspace, machine: &client::Machine) {
    wait_for(SOON, || {
        !alive(machine.launched.supervisor.pid) && !workspace.spec.runtime_dir.exists()
    });
}

fn a_workload_runs_and_its_end_ends_the_machine() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(true);
    let mut session = machine.exec(
        ExecRole::Workload,
        true,
        &["sh", "-c", "cat; echo oops >&2; exit 42"],
    );
    session.send(FrameKind::Stdin, b"hello\n");
    session.send(FrameKind::StdinEof, b"");
    let (stdout, stderr, exit) = session.finish();
    assert_eq!(stdout, b"hello\n");
    assert_eq!(stderr, b"oops\n");
    assert_eq!(exit.unwrap().status, ExitStatus::Exited { code: 42 });
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::WorkloadFinished));
    gone(&workspace, &machine);
    let result = workspace.result();
    assert_eq!(result.exit_code, Some(42));
    assert_eq!(result.stdout.data, "hello\n");
    assert_eq!(result.stderr.total_bytes, 5);
    let events = workspace.events();
    let names: Vec<_> = events
        .iter()
        .map(|event| {
            serde_json::to_value(event).unwrap()["event"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        names,
        [
            "starting",
            "vmm_started",
            "guest_hello",
            "guest_ready",
            "workload_started",
            "workload_exited",
            "ended"
        ]
    );
    assert!(
        events
            .iter()
            .zip(1..)
            .all(|(event, number)| event.sequence == number)
    );
    let EventKind::GuestHello { kernel_release, .. } = &events[2].kind else {
        panic!("{events:?}");
    };
    assert_eq!(kernel_release, "6.1-\u{fffd}]test");
    let mode = |name: &str| {
        let meta = std::fs::metadata(workspace.spec.directory.join(name)).unwrap();
        meta.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("events.jsonl"), mode("supervisor.log")),
        (0o600, 0o600)
    );
}

fn a_stream_to_the_guest_serves_one_session_after_the_other() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let text = |mut session: client::Client| {
        let (stdout, _, exit) = session.finish();
        assert_eq!(exit.unwrap().status.code(), 0);
        String::from_utf8(stdout).unwrap()
    };
    // The stream is there again a moment after the client has heard of the end.
    let mut before = String::new();
    let mut sessions = 0;
    wait_for(SOON, || {
        sessions += 2;
        // Whatever comes too late for its process is not for the next one.
        let session = machine.exec(ExecRole::Command, true, &["head", "-c", "1"]);
        let mut frames = Vec::new();
        for piece in [b"a", b"b", b"c"] {
            write_frame(&mut frames, FrameKind::Stdin, piece).unwrap();
        }
        write_frame(&mut frames, FrameKind::Signal, &[28]).unwrap();
        session.stream().write_all(&frames).unwrap();
        assert_eq!(text(session), "a");
        let streams = text(machine.exec(ExecRole::Command, false, &["streams"]));
        let same = streams == before;
        before = streams;
        same
    });
    assert!(before.parse::<u32>().unwrap() < sessions);
    // Several at a time have one each, and all of them serve again.
    let many: Vec<_> = (0..6)
        .map(|_| machine.exec(ExecRole::Command, true, &["cat"]))
        .collect();
    for (number, mut session) in many.into_iter().enumerate() {
        session.send(FrameKind::Stdin, number.to_string().as_bytes());
        session.send(FrameKind::StdinEof, b"");
        assert_eq!(session.finish().0, number.to_string().as_bytes());
    }
    // One that the guest has closed is noticed.
    let mut cut = machine.exec(ExecRole::Command, false, &["vanish"]);
    assert_eq!(cut.finish().2, None);
    for _ in 0..8 {
        machine
            .exec(ExecRole::Command, false, &["streams"])
            .finish();
    }
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn a_line_is_relayed_with_what_became_of_the_shell() {
    let workspace = Workspace::new("normal");
    let machine = workspace.boot(true);
    for (line, fate) in [("echo", ShellFate::Kept), ("exit", ShellFate::Ended)] {
        let mut client = machine.client();
        assert_eq!(
            client.line(line),
            Ok(Answer::Line {
                pid: 7,
                shell: ShellOrigin::Restarted
            })
        );
        let (stdout, _, report) = client.finish_line();
        assert_eq!((stdout.as_str(), report.shell), (line, Some(fate)));
        assert_eq!(report.exit.status.code(), 3);
    }
    let mut client = machine.client();
    match client.line("busy") {
        Ok(Answer::FailedToStart { reason, message }) => {
            assert_eq!(
                (reason, message.as_str()),
                (StartFailure::Guest, "the shell is busy")
            );
        }
        other => panic!("{other:?}"),
    }
    // The connection takes further requests, and what it became takes signals.
    assert!(matches!(client.ask(Ask::Console), Err(error) if error.kind == ErrorKind::Unsupported));
    client.line("wait").unwrap();
    client.send(FrameKind::Signal, &[2]);
    assert_eq!(client.finish_line().0, "wait");
    drop(machine.events);
    wait_for(SOON, || !alive(machine.launched.supervisor.pid));
}

fn who_gave_up_waiting_gets_nothing_run() {
    let workspace = Workspace::new("late");
    let machine = workspace.boot(false);
    let marker = workspace.root.path().join("ran");
    let touch = |name: &std::path::Path| {
        Ask::Exec(request(
            ExecRole::Command,
            false,
            &["touch", name.to_str().unwrap()],
        ))
    };
    let impatient = machine.client();
    write_json(
        &mut impatient.stream(),
        FrameKind::Request,
        &Request::new(touch(&marker)),
    )
    .unwrap();
    drop(impatient);
    std::fs::write(workspace.spec.directory.join("go"), "").unwrap();
    let mut patient = machine.client();
    assert!(matches!(
        patient.ask(touch(&workspace.root.path().join("other"))),
        Ok(Answer::Started { .. })
    ));
    patient.finish();
    machine.client().ask(Ask::Kill).unwrap();
    assert!(!marker.exists());
}

fn a_clean_workload_ends_halted_and_the_next_boot_goes_on_counting() {
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

fn much_output_and_input_is_relayed_exactly() {
    let workspace = Workspace::new("normal");
    let machine = workspace.boot(true);
    let session = machine.exec(ExecRole::Workload, true, &["cat"]);
    let bytes: Vec<u8> = (0..16_u32 << 20)
        .map(|at| (at ^ (at >> 11)) as u8)
        .collect();
    let mut writer = session.stream().try_clone().unwrap();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        for chunk in sent.chunks(64 * 1024) {
            write_frame(&mut writer, FrameKind::Stdin, chunk).unwrap();
        }
        // Half a close is the end of the input, too.
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut session = session;
    let (stdout, _, exit) = session.finish();
    sender.join().unwrap();
    assert!(stdout == bytes, "{} bytes came back", stdout.len());
    assert_eq!(exit.unwrap().status.code(), 0);
    gone(&workspace, &machine);
    let result = workspace.result();
    assert!(result.stdout.truncated);
    assert_eq!(result.stdout.total_bytes, 16 << 20);
}

fn a_program_that_is_not_there_is_told_apart() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(true);
    let mut client = machine.client();
    let missing = |role| Ask::Exec(request(role, false, &["/no/such/program"]));
    for _ in 0..2 {
        match client.ask(missing(ExecRole::Command)).unwrap() {
            Answer::FailedToStart { reason, message } => {
                assert_eq!(reason, StartFailure::NotFound);
                assert!(message.contains("/no/such/program"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        client.ask(missing(ExecRole::Workload)).unwrap(),
        Answer::FailedToStart { .. }
    ));
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::WorkloadFinished));
    let result = workspace.result();
    assert_eq!(result.exit_code, Some(127));
    assert!(matches!(
        result.exit,
        Some(ExitStatus::FailedToStart { .. })
    ));
    gone(&workspace, &machine);
}

fn one_shot_requests_are_answered_with_one_line() {
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

fn a_bad_launch_is_refused_by_name_and_leaves_nothing() {
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

fn a_driver_that_cannot_launch_fails_the_boot_twice() {
    let workspace = Workspace::new("no-launch");
    // It may be over before this connects; the story is told all the same.
    let mut machine = workspace.boot(true);
    let (state, cause, detail) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::BootFailed));
    assert!(detail.contains("attempt 1 is refused"), "{detail}");
    gone(&workspace, &machine);
}

fn a_process_that_waits_for_a_failed_boot_is_told_why() {
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

fn a_guest_whose_monitor_has_a_user_of_its_own_is_heard() {
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

fn a_boot_that_fails_once_is_tried_again() {
    for script in ["hang-once", "die-once", "panic-early-once"] {
        let mut workspace = Workspace::new(script);
        if script.starts_with("hang") {
            workspace.spec.boot_timeout_ms = 700;
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

fn a_boot_that_fails_twice_is_a_failed_boot_with_the_consoles_last_words() {
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

fn control_commands_are_idempotent_and_true_when_answered() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let mut client = machine.client();
    let mut status = |ask| match client.ask(ask) {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let vmm = status(Ask::Inspect).unwrap().vmm.unwrap();
    for (ask, state) in [
        (Ask::Pause, State::Paused),
        (Ask::Pause, State::Paused),
        (Ask::Resume, State::Running),
        (Ask::Resume, State::Running),
        (Ask::Pause, State::Paused),
        (Ask::Quarantine, State::Quarantined),
        (Ask::Quarantine, State::Quarantined),
    ] {
        assert_eq!(status(ask).unwrap().state, state);
    }
    assert_eq!(status(Ask::Resume).unwrap_err().kind, ErrorKind::Conflict);
    let refused = machine
        .client()
        .ask(Ask::Exec(request(ExecRole::Command, false, &["true"])));
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Conflict);
    assert!(alive(vmm.pid), "evidence is kept");
    let killed = status(Ask::Kill).unwrap();
    assert_eq!(
        (killed.state, killed.end),
        (State::Stopped, Some(EndCause::Killed))
    );
    assert!(!alive(vmm.pid));
    assert_eq!(machine.end().0, State::Stopped);
    gone(&workspace, &machine);
}

fn halt_is_clean_and_stop_is_not() {
    for (ask, state) in [
        (Ask::Halt { grace_ms: 1_000 }, State::Halted),
        (Ask::Stop { grace_ms: 1_000 }, State::Stopped),
    ] {
        let workspace = Workspace::new("slow");
        let mut machine = workspace.boot(false);
        machine.ready();
        machine.client().ask(Ask::Pause).unwrap();
        // Several at once, from several clients.
        let clients: Vec<_> = (0..4).map(|_| machine.client()).collect();
        let clients: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let ask = ask.clone();
                std::thread::spawn(move || client.ask(ask).unwrap())
            })
            .collect();
        for client in clients {
            let Answer::Status(status) = client.join().unwrap() else {
                panic!("no status");
            };
            assert_eq!(
                (status.state, status.end),
                (state, Some(EndCause::Requested))
            );
        }
        assert_eq!(machine.end().0, state);
        gone(&workspace, &machine);
    }
}

fn a_guest_that_hears_nothing_cannot_hold_up_control() {
    let workspace = Workspace::new("deaf");
    let mut machine = workspace.boot(false);
    machine.ready();
    let asked = Instant::now();
    let mut client = machine.client();
    let stopping = std::thread::spawn({
        let mut client = machine.client();
        move || client.ask(Ask::Stop { grace_ms: 60_000 })
    });
    machine.client().ask(Ask::Inspect).unwrap();
    client.ask(Ask::Kill).unwrap();
    assert!(stopping.join().unwrap().is_ok());
    assert!(asked.elapsed() < SOON);
    let cause = machine.end().1;
    assert!(
        matches!(cause, EndCause::Requested | EndCause::Killed),
        "{cause:?}"
    );
    gone(&workspace, &machine);
}

fn a_time_limit_holds() {
    let mut workspace = Workspace::new("normal");
    workspace.spec.time_limit_ms = Some(1_000);
    let mut machine = workspace.boot(true);
    let mut session = machine.exec(ExecRole::Workload, false, &["sleep", "600"]);
    session.finish();
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::TimedOut));
    gone(&workspace, &machine);
}

fn ends_from_inside_are_told_apart() {
    for (program, state, cause) in [
        ("poweroff", State::Halted, EndCause::GuestPoweredOff),
        ("panic", State::Failed, EndCause::GuestPanicked),
        ("violate", State::Failed, EndCause::GuestPanicked),
        ("vanish", State::Failed, EndCause::GuestPanicked),
        ("oom", State::Failed, EndCause::OutOfMemory),
    ] {
        let workspace = Workspace::new("normal");
        let mut machine = workspace.boot(false);
        let mut client = machine.client();
        let started = client.ask(Ask::Exec(request(ExecRole::Workload, false, &[program])));
        if started.is_ok() {
            client.finish();
        }
        let (seen, why, detail) = machine.end();
        assert_eq!((seen, why), (state, cause), "{program}: {detail}");
        if program == "violate" {
            assert!(detail.contains("Stdin frame"), "{detail}");
        }
        gone(&workspace, &machine);
    }
}

fn a_vmm_killed_by_another_hand_is_noticed() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let event = machine.until(|kind| matches!(kind, EventKind::VmmStarted { .. }));
    machine.ready();
    let EventKind::VmmStarted { vmm, .. } = event.kind else {
        unreachable!();
    };
    kill(vmm.pid);
    let (state, cause, detail) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::VmmDied));
    assert!(detail.contains("signal 9"), "{detail}");
    gone(&workspace, &machine);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn a_killed_supervisor_takes_the_vmm_along_and_the_next_boot_records_it() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let Ok(Answer::Status(status)) = machine.client().ask(Ask::Inspect) else {
        panic!("no status");
    };
    let vmm = status.vmm.unwrap();
    kill(machine.launched.supervisor.pid);
    wait_for(SOON, || !alive(vmm.pid));
    std::fs::remove_dir_all(&workspace.spec.runtime_dir).unwrap();
    std::fs::create_dir(&workspace.spec.runtime_dir).unwrap();
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&workspace.spec.runtime_dir, private).unwrap();
    let path = workspace.spec.directory.join("events.jsonl");
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    torn.write_all(b"{\"sequence\":99,\"at\":\"20").unwrap();
    let mut machine = workspace.boot(false);
    machine.ready();
    let states: Vec<_> = workspace.events().iter().map(|event| event.state).collect();
    assert!(
        states
            .windows(2)
            .all(|pair| pair[0] == pair[1] || pair[0].may_become(pair[1])),
        "{states:?}"
    );
    machine.client().ask(Ask::Kill).unwrap();
    gone(&workspace, &machine);
}

/// A program that launches an owned machine and is killed.
fn launcher(how: &str) -> ! {
    let mut workspace = Workspace::new("normal");
    workspace.spec.owned = true;
    workspace.spec.ephemeral = how == "ephemeral";
    let mut held = None;
    let launched = if how == "before" {
        workspace.launch()
    } else {
        let mut machine = workspace.boot(true);
        machine.ready();
        held = Some(machine.exec(ExecRole::Workload, false, &["sleep", "600"]));
        let launched = machine.launched.clone();
        std::mem::forget(machine);
        launched
    };
    println!(
        "{} {}",
        launched.supervisor.pid,
        workspace.root.path().display()
    );
    std::mem::forget((workspace, held));
    std::thread::sleep(Duration::from_secs(600));
    std::process::exit(1);
}

fn an_owned_machine_dies_with_the_program_that_launched_it() {
    for how in ["before", "after", "ephemeral"] {
        let mut program = Command::new(std::env::current_exe().unwrap())
            .args(["__launcher", how])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(program.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let (pid, root) = line.trim().split_once(' ').unwrap();
        let pid = pid.parse().unwrap();
        assert!(alive(pid));
        program.kill().unwrap();
        program.wait().unwrap();
        let root = std::path::PathBuf::from(root);
        wait_for(SOON, || !alive(pid) && !root.join("run").exists());
        if how == "ephemeral" {
            assert!(!root.join("directory").exists(), "it goes with its machine");
            std::fs::remove_dir_all(root).unwrap();
            continue;
        }
        let events = std::fs::read_to_string(root.join("directory/events.jsonl")).unwrap();
        assert!(
            events.lines().last().unwrap().contains("owner_gone"),
            "{how}: {events}"
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}

fn an_owner_that_lets_go_ends_the_machine_and_a_second_one_is_refused() {
    let mut workspace = Workspace::new("normal");
    workspace.spec.owned = true;
    let mut machine = workspace.boot(true);
    machine.ready();
    let second = machine.client().ask(Ask::Subscribe { owner: true });
    assert_eq!(second.unwrap_err().kind, ErrorKind::Conflict);
    let mut watcher = machine.client();
    watcher.ask(Ask::Subscribe { owner: false }).unwrap();
    machine.events.stream().shutdown(Shutdown::Both).unwrap();
    let mut watching = client::Machine::new(machine.launched.clone(), watcher);
    let (state, cause, _) = watching.end();
    assert_eq!((state, cause), (State::Stopped, EndCause::OwnerGone));
    gone(&workspace, &machine);
}

fn a_workload_outlives_its_client_while_its_owner_is_there() {
    for owned in [false, true] {
        let mut workspace = Workspace::new("normal");
        workspace.spec.owned = owned;
        let mut machine = workspace.boot(owned);
        let session = machine.exec(
            ExecRole::Workload,
            true,
            &["sh", "-c", "cat; echo still here; exit 5"],
        );
        drop(session);
        let (state, cause, _) = machine.end();
        assert_eq!((state, cause), (State::Failed, EndCause::WorkloadFinished));
        assert_eq!(workspace.result().stdout.data, "still here\n");
        gone(&workspace, &machine);
    }
}

fn a_machines_own_workload_needs_no_client() {
    let mut workspace = Workspace::new("normal");
    workspace.spec.workload = Some(request(
        ExecRole::Workload,
        false,
        &["sh", "-c", "echo by itself; exit 5"],
    ));
    let mut machine = workspace.boot(false);
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::WorkloadFinished));
    assert_eq!(workspace.result().stdout.data, "by itself\n");
    gone(&workspace, &machine);

    let mut workspace = Workspace::new("normal");
    workspace.spec.workload = Some(request(ExecRole::Workload, false, &["/no/such/program"]));
    let mut machine = workspace.boot(false);
    assert_eq!(machine.end().0, State::Failed);
    assert_eq!(workspace.result().exit_code, Some(127));
    gone(&workspace, &machine);
}

fn a_workspace_has_one_machine_at_a_time() {
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

fn a_command_ends_with_its_client_and_signals_reach_it() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let mut session = machine.exec(ExecRole::Command, false, &["sleep", "600"]);
    session.send(FrameKind::Signal, &[15]);
    assert_eq!(
        session.finish().2.unwrap().status,
        ExitStatus::Signaled { signal: 15 }
    );
    let mark = workspace.root.path().join("mark");
    let script = format!(
        "echo $$ > {0}.tmp; mv {0}.tmp {0}; exec sleep 600",
        mark.display()
    );
    let session = machine.exec(ExecRole::Command, false, &["sh", "-c", &script]);
    wait_for(SOON, || mark.exists());
    let pid = std::fs::read_to_string(&mark)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(alive(pid));
    drop(session);
    wait_for(SOON, || !alive(pid));
    // A frame out of turn ends that session alone.
    let mut session = machine.exec(ExecRole::Command, false, &["sleep", "600"]);
    session.send(FrameKind::Stdout, b"x");
    assert_eq!(session.finish().2, None);
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn sessions_are_many_but_bounded() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let mut sessions: Vec<_> = (0..128)
        .map(|_| machine.exec(ExecRole::Command, true, &["cat"]))
        .collect();
    let refused = machine
        .client()
        .ask(Ask::Exec(request(ExecRole::Command, false, &["true"])));
    let error = refused.unwrap_err();
    assert!(
        error.retryable && error.message.contains("128"),
        "{error:?}"
    );
    for (number, session) in sessions.iter().enumerate() {
        session.send(FrameKind::Stdin, number.to_string().as_bytes());
        session.send(FrameKind::StdinEof, b"");
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        let (stdout, _, exit) = session.finish();
        assert_eq!(stdout, number.to_string().as_bytes());
        assert_eq!(exit.unwrap().status.code(), 0);
    }
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", machine.launched.supervisor.pid))
            .unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = peak
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    println!("     the supervisor's peak RSS with 128 sessions: {kib} KiB");
    // The promised 15 MiB are those of a release build with a guest that runs; this one is neither optimised
    // nor stripped, and holds as many sessions as there may be.
    assert!(kib <= 18 * 1024, "{kib} KiB");
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn a_subscriber_that_reads_nothing_blocks_nobody() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let mut slow = machine.client();
    slow.ask(Ask::Subscribe { owner: false }).unwrap();
    let mut client = machine.client();
    let drain = std::thread::spawn(move || machine.end());
    for _ in 0..1_500 {
        client.ask(Ask::Pause).unwrap();
        client.ask(Ask::Resume).unwrap();
    }
    client.ask(Ask::Kill).unwrap();
    assert_eq!(drain.join().unwrap().1, EndCause::Killed);
    wait_for(SOON, || !workspace.spec.runtime_dir.exists());
}

/// Another user, who knows where the socket is.
fn stranger(socket: &str) -> ! {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => {
            println!("not let in: {error}");
            std::process::exit(3);
        }
    };
    let _ = write_frame(
        &mut stream,
        FrameKind::Request,
        br#"{"protocol":1,"command":"kill"}"#,
    );
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    println!("{}", String::from_utf8_lossy(&answer));
    std::process::exit(4);
}

fn another_user_is_turned_away() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    // A copy of this program where everybody may run it.
    let program = workspace.root.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let everybody = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    everybody(workspace.root.path());
    everybody(&program);
    let try_it = || {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .arg("__stranger")
            .arg(&machine.launched.socket)
            .output()
            .expect("setpriv is missing; install the package util-linux")
    };
    let out = try_it();
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    // Even where the files would let it.
    everybody(&workspace.spec.runtime_dir);
    everybody(&machine.launched.socket);
    let out = try_it();
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("user 65534 may not talk"), "{said}");
    let Ok(Answer::Status(status)) = machine.client().ask(Ask::Inspect) else {
        panic!("no status");
    };
    assert_eq!(status.state, State::Running);
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn nonsense_on_the_control_socket_is_answered_and_survived() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let nonsense: &[(FrameKind, &[u8])] = &[
        (FrameKind::Request, b"{}"),
        (FrameKind::Request, b"\xff"),
        (FrameKind::Request, br#"{"protocol":1,"command":"fly"}"#),
        (FrameKind::Request, br#"{"protocol":2,"command":"kill"}"#),
        (
            FrameKind::Request,
            br#"{"protocol":1,"command":"host","arguments":{}}"#,
        ),
        (FrameKind::Stdout, b"hello"),
    ];
    for (kind, payload) in nonsense {
        let mut client: Client = machine.client();
        client.send(*kind, payload);
        let response: microagent_protocol::supervisor::Response =
            client.0.require().unwrap().json().unwrap();
        assert!(!response.ok);
    }
    machine.client().stream().write_all(&[0xff; 64]).unwrap();
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn a_second_workload_is_refused() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    let _first = machine.exec(ExecRole::Workload, true, &["cat"]);
    let refused = machine
        .client()
        .ask(Ask::Exec(request(ExecRole::Workload, false, &["true"])));
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Conflict);
    machine.client().ask(Ask::Kill).unwrap();
    machine.end();
    gone(&workspace, &machine);
}

fn a_terminated_supervisor_ends_its_machine() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let pid = rustix::process::Pid::from_raw(machine.launched.supervisor.pid.cast_signed());
    let signal = |signal| rustix::process::kill_process(pid.unwrap(), signal).unwrap();
    signal(rustix::process::Signal::HUP);
    machine.client().ask(Ask::Inspect).unwrap();
    signal(rustix::process::Signal::TERM);
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Stopped, EndCause::Requested));
    gone(&workspace, &machine);
    assert!(
        workspace.log().contains("the machine ended"),
        "{}",
        workspace.log()
    );
}
