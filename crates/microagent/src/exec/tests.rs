//! Sessions with a supervisor that follows a script: everything but the machine.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::{
    ExitStatus, FrameKind, FrameReader, LineReport, ShellFate, ShellOrigin, StartFailure, TtySize,
    exec::ExitReport,
    frame::{write_frame, write_json},
    supervisor::{Answer, Command, ErrorKind, ErrorReport, Request, Response},
};

use super::*;
use crate::{Error, supervisor::client::Control};

/// What the scripted supervisor does with a session it was asked for.
type Script = fn(&Command, &mut FrameReader<UnixStream>, &mut UnixStream, &Mutex<Vec<u8>>);

struct Rig {
    target: Target,
    /// The signals that were sent.
    signals: Arc<Mutex<Vec<u8>>>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let signals = Arc::<Mutex<Vec<u8>>>::default();
        let seen = Arc::clone(&signals);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = FrameReader::new(stream.try_clone().unwrap());
                let request: Request = reader.require().unwrap().json().unwrap();
                script(&request.command, &mut reader, &mut stream, &seen);
            }
        });
        let session = serde_json::from_value(serde_json::json!({
            "role": "command", "argv": [], "env": ["A=1", "B=2"], "cwd": "/w", "user": "u",
        }));
        Self {
            target: Target {
                name: "test".to_owned(),
                directory: directory.path().to_owned(),
                control: Control::new("test", socket),
                session: session.unwrap(),
                shell: None,
                ready_limit: Duration::from_secs(5),
                capture_limit: 1024,
            },
            signals,
            _directory: directory,
        }
    }

    fn signals(&self) -> Vec<u8> {
        self.signals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn exec(&self, options: &ExecOptions) -> Result<ExecResult> {
        exec(&self.target, options, RunIo::captured())
    }
}

fn answer(stream: &mut UnixStream, outcome: Result<Answer, ErrorReport>) {
    write_json(stream, FrameKind::Response, &Response::new("", outcome)).unwrap();
}

fn begin(stream: &mut UnixStream) {
    answer(stream, Ok(Answer::Started { pid: 7 }));
    write_frame(stream, FrameKind::Stdout, b"begun\n").unwrap();
}

fn end(stream: &mut UnixStream, status: ExitStatus, shell: Option<ShellFate>) {
    let exit = ExitReport {
        status,
        oom_kills: 0,
    };
    write_json(stream, FrameKind::Exit, &LineReport { exit, shell }).unwrap();
}

/// Answers nothing until the client is gone.
fn silent(
    _: &Command,
    reader: &mut FrameReader<UnixStream>,
    _: &mut UnixStream,
    _: &Mutex<Vec<u8>>,
) {
    while reader.read().is_ok_and(|frame| frame.is_some()) {}
}

/// Notes signals until `last` comes; false if the client is gone before.
fn until_signal(reader: &mut FrameReader<UnixStream>, seen: &Mutex<Vec<u8>>, last: u8) -> bool {
    while let Ok(Some(frame)) = reader.read() {
        if frame.kind == FrameKind::Signal {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(frame.payload[0]);
            if frame.payload == [last] {
                return true;
            }
        }
    }
    false
}

#[test]
fn the_workspaces_own_settings_apply_unless_given() {
    let rig = Rig::new(|command, _, stream, _| {
        let Command::Exec(request) = command else {
            panic!("{command:?}");
        };
        let told = serde_json::to_string(request).unwrap();
        answer(stream, Ok(Answer::Started { pid: 7 }));
        write_frame(stream, FrameKind::Stderr, told.as_bytes()).unwrap();
        end(stream, ExitStatus::Exited { code: 3 }, None);
    });
    let asked = |options: &ExecOptions| -> serde_json::Value {
        let result = rig.exec(options).unwrap();
        assert_eq!((result.exit_code, result.error), (3, None));
        assert!(result.started_at.is_some() && result.exited_at.is_some());
        serde_json::from_str(&result.stderr.data).unwrap()
    };
    let plain = asked(&ExecOptions::new(["a", "b"]));
    assert_eq!(plain["argv"], serde_json::json!(["a", "b"]));
    assert_eq!(plain["env"], serde_json::json!(["A=1", "B=2"]));
    assert_eq!((&plain["cwd"], &plain["user"]), (&"/w".into(), &"u".into()));
    let options = ExecOptions::new(["a"]).env("A", "9").env_remove("B");
    let given = asked(&options.workdir("/x").user("7:8"));
    assert_eq!(given["env"], serde_json::json!(["A=9"]));
    assert_eq!(
        (&given["cwd"], &given["user"]),
        (&"/x".into(), &"7:8".into())
    );
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_asked() {
    let rig = Rig::new(|_, _, _, _| panic!("it was asked"));
    for (options, words) in [
        (ExecOptions::new([""]), "no program"),
        (ExecOptions::new(["a\0b"]), "NUL"),
        (ExecOptions::new(["a"]).workdir("x"), "absolute"),
        (ExecOptions::new(["a"]).user("a:b:c"), "UID"),
        (ExecOptions::new(["a"]).env("", "x"), "NAME=VALUE"),
        (ExecOptions::new(["a"]).timeout(Duration::ZERO), "zero"),
    ] {
        let error = rig.exec(&options).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    for (options, words) in [
        (LineOptions::new("a\0"), "NUL"),
        (LineOptions::new("x".repeat(2 << 20)), "bytes"),
        (LineOptions::new("x").shell(""), "program"),
    ] {
        let error = line(&rig.target, &options, RunIo::captured()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_command_out_of_time_is_asked_to_end_and_then_made_to() {
    let rig = Rig::new(|_, reader, stream, seen| {
        begin(stream);
        assert!(until_signal(reader, seen, 9));
        end(stream, ExitStatus::Signaled { signal: 9 }, None);
    });
    let limit = Duration::from_millis(50);
    let result = rig.exec(&ExecOptions::new(["a"]).timeout(limit)).unwrap();
    assert_eq!(rig.signals(), [15, 9]);
    assert_eq!((result.exit_code, result.timed_out), (124, true));
    assert_eq!(result.exit, Some(ExitStatus::Signaled { signal: 9 }));
    assert_eq!(result.stdout.data, "begun\n");
    assert!(result.error.unwrap().message.contains("50ms"));
}

#[test]
fn a_line_out_of_time_is_interrupted() {
    let rig = Rig::new(|command, reader, stream, seen| {
        let Command::Shell(line) = command else {
            panic!("{command:?}");
        };
        assert_eq!(
            (line.turn_limit_ms, line.shell.env.len()),
            (Some(10_000), 2)
        );
        let shell = ShellOrigin::Started;
        answer(stream, Ok(Answer::Line { pid: 7, shell }));
        write_frame(stream, FrameKind::Stdout, b"begun\n").unwrap();
        assert!(until_signal(reader, seen, 2));
        end(
            stream,
            ExitStatus::Exited { code: 130 },
            Some(ShellFate::Kept),
        );
    });
    let options = LineOptions::new("sleep 9").timeout(Some(Duration::from_millis(50)));
    let result = line(&rig.target, &options, RunIo::captured()).unwrap();
    assert_eq!((result.exit_code, result.timed_out), (124, true));
    assert_eq!(result.shell, Some(ShellOrigin::Started));
    assert_eq!(result.shell_after, Some(ShellFate::Kept));
    assert_eq!(result.stdout.data, "begun\n");
}

#[test]
fn a_shell_that_cannot_take_the_line_is_no_result() {
    let rig = Rig::new(|_, _, stream, _| {
        let failed = Answer::FailedToStart {
            reason: StartFailure::Guest,
            message: "because".to_owned(),
        };
        answer(stream, Ok(failed));
    });
    let error = line(&rig.target, &LineOptions::new("x"), RunIo::captured()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("because"), "{error}");
}

#[test]
fn a_workspace_that_is_not_ready_in_time_is_an_error() {
    let rig = Rig::new(silent);
    let options = ExecOptions::new(["a"]).ready_timeout(Duration::from_millis(20));
    let error = rig.exec(&options).unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    assert!(error.report().retryable);
}

#[test]
fn a_large_request_comes_whole_and_one_that_nobody_reads_holds_nobody() {
    let rig = Rig::new(|command, _, stream, _| {
        let Command::Exec(request) = command else {
            panic!("{command:?}");
        };
        let length = request.argv[1].len().to_string();
        answer(stream, Ok(Answer::Started { pid: 7 }));
        write_frame(stream, FrameKind::Stdout, length.as_bytes()).unwrap();
        end(stream, ExitStatus::Exited { code: 0 }, None);
    });
    let large = |length: usize| ExecOptions::new(["echo".to_owned(), "x".repeat(length)]);
    for length in [10, 30_000, 40_000, 500_000] {
        let result = rig.exec(&large(length)).unwrap();
        assert_eq!(result.stdout.data, length.to_string());
    }
    // A socket of which nobody takes anything.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let target = Target {
        control: Control::new("test", socket),
        ..rig.target.clone()
    };
    let options = large(500_000).ready_timeout(Duration::from_millis(20));
    let error = exec(&target, &options, RunIo::captured()).unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
}

#[test]
fn what_the_supervisor_refuses_is_refused() {
    let rig = Rig::new(|_, _, stream, _| {
        let report = ErrorReport::new(ErrorKind::Conflict, "workspace test is ending");
        answer(stream, Err(report));
    });
    let error = rig.exec(&ExecOptions::new(["a"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn an_end_that_was_not_seen_is_told() {
    let rig = Rig::new(|_, _, stream, _| begin(stream));
    let result = rig.exec(&ExecOptions::new(["a"])).unwrap();
    assert_eq!((result.exit, result.exit_code), (None, 125));
    assert_eq!(result.stdout.data, "begun\n");
    let error = result.error.unwrap();
    assert!(error.message.contains("not known"), "{error}");
}

#[test]
fn a_controller_signals_kills_and_lets_go() {
    let rig = Rig::new(|_, reader, stream, seen| {
        begin(stream);
        if until_signal(reader, seen, 9) {
            end(stream, ExitStatus::Signaled { signal: 9 }, None);
        }
    });
    let options = ExecOptions::new(["a"]);
    let io = RunIo::captured();
    let controller = io.controller();
    let io = io.on_event(move |_| {
        controller.signal(10);
        controller.kill();
    });
    let result = exec(&rig.target, &options, io).unwrap();
    assert_eq!((result.exit_code, result.timed_out), (137, false));
    assert_eq!(rig.signals(), [10, 9]);

    let io = RunIo::captured();
    let controller = io.controller();
    let io = io.on_event(move |_| controller.detach());
    let begun = Instant::now();
    let options = ShellOptions::new(TtySize { rows: 2, cols: 3 });
    let shell_end = shell(&rig.target, options, io).unwrap();
    assert_eq!(shell_end, ShellEnd::Detached);
    assert!(begun.elapsed() < Duration::from_secs(3));

    let io = RunIo::captured();
    io.controller().signal(2);
    let rig = Rig::new(silent);
    let error = exec(&rig.target, &ExecOptions::new(["a"]), io).unwrap_err();
    assert!(matches!(error, Error::Cancelled { signal: 2 }), "{error}");
}
