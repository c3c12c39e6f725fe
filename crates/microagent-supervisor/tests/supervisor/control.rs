//! What clients of the control socket ask, and what they can do to it.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Command,
    time::Instant,
};

use microagent_protocol::{
    EndCause, ExecRole, FrameKind, State,
    frame::write_frame,
    supervisor::{Answer, Command as Ask, ErrorKind, EventKind},
};

use crate::{
    SOON,
    client::{Client, Workspace, alive, request},
    gone,
    vmm::wait_for,
};

pub(crate) fn control_commands_are_idempotent_and_true_when_answered() {
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

pub(crate) fn halt_is_clean_and_stop_is_not() {
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

pub(crate) fn a_guest_that_hears_nothing_cannot_hold_up_control() {
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

pub(crate) fn a_time_limit_holds() {
    let mut workspace = Workspace::new("normal");
    workspace.spec.time_limit_ms = Some(1_000);
    let mut machine = workspace.boot(true);
    let mut session = machine.exec(ExecRole::Workload, false, &["sleep", "600"]);
    session.finish();
    let (state, cause, _) = machine.end();
    assert_eq!((state, cause), (State::Failed, EndCause::TimedOut));
    gone(&workspace, &machine);
}

pub(crate) fn a_subscriber_that_reads_nothing_blocks_nobody() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    let mut slow = machine.client();
    slow.ask(Ask::Subscribe { owner: false }).unwrap();
    let mut client = machine.client();
    for _ in 0..1_500 {
        client.ask(Ask::Pause).unwrap();
        client.ask(Ask::Resume).unwrap();
        // One that reads is never behind.
        machine.until(|kind| matches!(kind, EventKind::Resumed));
    }
    client.ask(Ask::Kill).unwrap();
    assert_eq!(machine.end().1, EndCause::Killed);
    wait_for(SOON, || !workspace.spec.runtime_dir.exists());
}

/// Another user, who knows where the socket is.
pub(crate) fn stranger(socket: &str) -> ! {
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

pub(crate) fn another_user_is_turned_away() {
    let workspace = Workspace::new("normal");
    let mut machine = workspace.boot(false);
    machine.ready();
    // A copy of this program where everybody may run it.
    let program = workspace.root.path().join("program");
    testkit::executable(
        &program,
        &std::fs::read(std::env::current_exe().unwrap()).unwrap(),
    );
    let everybody = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    everybody(workspace.root.path());
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

pub(crate) fn nonsense_on_the_control_socket_is_answered_and_survived() {
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
