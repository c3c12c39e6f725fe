//! Runs against a supervisor that follows a script: everything but the machine.

use std::{
    io::{self, Cursor, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, SystemTime},
};

use microagent_protocol::{
    EndCause, ExitStatus, FrameKind, FrameReader, ProcessIdentity, StartFailure, State,
    exec::{ExecRequest, ExecRole, ExitReport},
    frame::{write_frame, write_json},
    supervisor::{
        Answer, Command, ErrorKind, ErrorReport, Event, EventKind, Launched, Request, Response,
    },
};

use super::{
    Happening,
    drive::{Drive, Driven, Setup},
    follow,
};
use crate::{
    Config, Error, RunIo, SupervisorProgram,
    io::Parts,
    session::{Sinks, lock},
    supervisor::client::Supervisor,
};

/// What the scripted supervisor does with a process it is asked to run.
type Script = fn(&ExecRequest, &mut FrameReader<UnixStream>, &mut UnixStream);

fn exit(stream: &mut UnixStream, status: ExitStatus) {
    let report = ExitReport {
        status,
        oom_kills: 0,
    };
    write_json(stream, FrameKind::Exit, &report).unwrap();
}

fn code(code: u8) -> ExitStatus {
    ExitStatus::Exited { code }
}

fn respond(stream: &mut UnixStream, outcome: Result<Answer, ErrorReport>) {
    write_json(stream, FrameKind::Response, &Response::new("", outcome)).unwrap();
}

#[derive(Default)]
struct Fake {
    owner: Mutex<Option<UnixStream>>,
    asked: Mutex<Vec<String>>,
}

impl Fake {
    /// Tells the owner that the machine ended, and hangs up.
    fn end(&self, cause: EndCause) {
        let Some(mut owner) = lock(&self.owner).take() else {
            return;
        };
        let event = Event {
            sequence: 9,
            at: SystemTime::now().into(),
            state: State::Stopped,
            kind: EventKind::Ended {
                cause,
                detail: None,
                ms: 1,
            },
        };
        // The owner may be gone.
        let _ = write_json(&mut owner, FrameKind::Event, &event);
        let _ = owner.shutdown(std::net::Shutdown::Both);
    }

    fn serve(&self, mut stream: UnixStream, script: Script) {
        let mut reader = FrameReader::new(stream.try_clone().unwrap());
        let Ok(Some(frame)) = reader.read() else {
            return;
        };
        let request: Request = frame.json().unwrap();
        match request.command {
            Command::Subscribe { owner: true } => {
                // Whoever is answered may kill at once, and then the owner must be known.
                let mut owner = lock(&self.owner);
                respond(&mut stream, Ok(Answer::Subscribed));
                *owner = Some(stream);
            }
            Command::Kill => {
                lock(&self.asked).push("kill".to_owned());
                self.end(EndCause::Killed);
                let report = ErrorReport::new(ErrorKind::Conflict, "it is gone");
                respond(&mut stream, Err(report));
            }
            Command::Exec(exec) => {
                lock(&self.asked).push(exec.argv.join(" "));
                script(&exec, &mut reader, &mut stream);
                if exec.argv == ["vanish"] {
                    *lock(&self.owner) = None;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A run in progress against a script.
struct Rig {
    fake: Arc<Fake>,
    config: Config,
    supervisor: Supervisor,
    parts: Parts,
    sinks: Sinks,
    events: Receiver<String>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(script: Script) -> Self {
        Self::with_io(script, RunIo::captured())
    }

    fn with_io(script: Script, io: RunIo) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let fake = Arc::new(Fake::default());
        let served = Arc::clone(&fake);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                thread::spawn(move || served.serve(stream, script));
            }
        });
        // A process number nobody has: only the connection shows the end.
        let supervisor = ProcessIdentity {
            pid: 0,
            start_ticks: 0,
            boot_id: String::new(),
        };
        let launched = Launched { socket, supervisor };
        let (supervisor, machine) = Supervisor::own("test", &launched).unwrap();
        let (told, events) = mpsc::channel();
        let io = io.on_event(move |event| {
            let _ = told.send(format!("{event:?}"));
        });
        let mut parts = io.into_parts();
        follow(machine, parts.sender.clone());
        let stdout = std::mem::replace(&mut parts.stdout, Box::new(io::sink()));
        let stderr = std::mem::replace(&mut parts.stderr, Box::new(io::sink()));
        let sinks = Sinks::new(stdout, stderr, 1024);
        let mut config = Config::new(Path::new("/"), "/", SupervisorProgram::ThisProgram);
        config.timeouts.shutdown = Duration::from_secs(5);
        Self {
            fake,
            config,
            supervisor,
            parts,
            sinks,
            events,
            _directory: directory,
        }
    }

    fn run(&mut self, setups: &[&str], argv: &str, keep: bool) -> Driven {
        let request = |role, argv: &str| ExecRequest {
            role,
            argv: argv.split(' ').map(str::to_owned).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: None,
            stdin: self.parts.stdin.is_some(),
            stop_signal: None,
        };
        let workload = request(ExecRole::Workload, argv);
        let setups = setups
            .iter()
            .map(|script| Setup::Script {
                script: (*script).to_owned(),
                request: request(ExecRole::Setup, script),
            })
            .collect();
        let stdin = self.parts.stdin.take();
        let Parts {
            events,
            sender,
            receiver,
            ..
        } = &self.parts;
        Drive::new(
            &self.config,
            &self.supervisor,
            events,
            sender,
            &self.sinks,
            keep,
        )
        .run(receiver, setups, workload, stdin)
    }

    fn control(&self, control: crate::io::Control) {
        self.parts.sender.send(Happening::Control(control)).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        lock(&self.fake.asked).clone()
    }

    fn out(&self) -> (String, String) {
        (
            lock(&self.sinks.stdout).captured().data,
            lock(&self.sinks.stderr).captured().data,
        )
    }
}

fn started(stream: &mut UnixStream) {
    respond(stream, Ok(Answer::Started { pid: 7 }));
}

#[test]
fn output_is_kept_apart_and_the_exit_ends_the_machine() {
    let mut rig = Rig::new(|_, _, stream| {
        started(stream);
        write_frame(stream, FrameKind::Stdout, b"out").unwrap();
        write_frame(stream, FrameKind::Stderr, b"err").unwrap();
        exit(stream, code(3));
    });
    let driven = rig.run(&[], "x", false);
    assert_eq!(driven.exit.unwrap().status, code(3));
    assert!(driven.failure.is_none() && driven.started_at.is_some());
    assert_eq!(rig.out(), ("out".into(), "err".into()));
    assert_eq!(rig.asked(), ["x", "kill"]);
    assert!(rig.events.try_iter().any(|event| event == "Started"));
}

#[test]
fn setup_runs_first_and_its_output_is_not_the_commands() {
    let mut rig = Rig::new(|request, _, stream| {
        started(stream);
        write_frame(stream, FrameKind::Stdout, request.argv[0].as_bytes()).unwrap();
        exit(stream, code(0));
    });
    let driven = rig.run(&["one", "two"], "command", false);
    assert!(driven.failure.is_none() && driven.setup.is_some());
    assert_eq!(rig.asked(), ["one", "two", "command", "kill"]);
    assert_eq!(rig.out(), ("command".into(), String::new()));
}

#[test]
fn a_setup_command_that_fails_keeps_the_command_from_running() {
    let mut rig = Rig::new(|_, _, stream| {
        started(stream);
        exit(stream, code(9));
    });
    let driven = rig.run(&["exit 9"], "command", false);
    let error = driven.failure.unwrap().to_string();
    assert!(
        error.contains("exit 9") && error.contains("code 9"),
        "{error}"
    );
    assert_eq!(rig.asked(), ["exit 9", "kill"]);
}

#[test]
fn input_flows_and_ends() {
    let io = RunIo::captured().stdin(Cursor::new(b"hello".to_vec()));
    let mut rig = Rig::with_io(
        |_, reader, stream| {
            started(stream);
            loop {
                let frame = reader.require().unwrap();
                match frame.kind {
                    FrameKind::Stdin => {
                        write_frame(stream, FrameKind::Stdout, frame.payload).unwrap();
                    }
                    FrameKind::StdinEof => break exit(stream, code(0)),
                    other => panic!("{other:?}"),
                }
            }
        },
        io,
    );
    rig.run(&[], "cat", false);
    assert_eq!(rig.out().0, "hello");
}

/// Ends as the first signal says.
fn until_signalled(_: &ExecRequest, reader: &mut FrameReader<UnixStream>, stream: &mut UnixStream) {
    started(stream);
    write_frame(stream, FrameKind::Stdout, b"ready").unwrap();
    let frame = reader.require().unwrap();
    assert_eq!(frame.kind, FrameKind::Signal);
    let signal = frame.payload[0];
    exit(stream, ExitStatus::Signaled { signal });
}

#[test]
fn signals_reach_the_command_once_it_runs() {
    let io = RunIo::captured();
    let controller = io.controller();
    let mut rig = Rig::with_io(until_signalled, io);
    let (_told, none) = mpsc::channel();
    let events = std::mem::replace(&mut rig.events, none);
    let driven = thread::scope(|scope| {
        let run = scope.spawn(move || rig.run(&[], "x", false));
        // Not before it runs: that would cancel.
        assert!(events.iter().any(|event| event == "Started"));
        controller.signal(15);
        run.join().unwrap()
    });
    assert_eq!(
        driven.exit.unwrap().status,
        ExitStatus::Signaled { signal: 15 }
    );
    assert!(driven.failure.is_none());
}

#[test]
fn a_signal_before_the_command_runs_cancels() {
    // The guest is not ready: the request is not answered until the machine is gone.
    let mut rig = Rig::new(|_, reader, _| {
        let _ = reader.read();
    });
    rig.control(crate::io::Control::Signal(2));
    let driven = rig.run(&[], "x", false);
    assert!(matches!(
        driven.failure,
        Some(Error::Cancelled { signal: 2 })
    ));
    assert!(driven.started_at.is_none() && driven.end == Some(EndCause::Killed));
}

#[test]
fn a_reader_that_went_away_is_a_broken_pipe_to_the_command() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut rig = Rig::with_io(until_signalled, RunIo::new(Closed, io::sink()));
    let driven = rig.run(&[], "yes", false);
    assert_eq!(
        driven.exit.unwrap().status,
        ExitStatus::Signaled { signal: 13 }
    );
    assert!(driven.failure.is_none());
}

#[test]
fn a_command_that_never_ran_says_why() {
    let mut rig = Rig::new(|_, _, stream| {
        let reason = StartFailure::NotFound;
        respond(
            stream,
            Ok(Answer::FailedToStart {
                reason,
                message: "no x".into(),
            }),
        );
    });
    let driven = rig.run(&[], "x", false);
    assert_eq!(driven.exit.unwrap().status.code(), 127);
    assert!(driven.started_at.is_none());
}

#[test]
fn a_supervisor_that_vanishes_ends_the_run() {
    let mut rig = Rig::new(|_, _, stream| started(stream));
    let driven = rig.run(&[], "vanish", false);
    assert!(driven.exit.is_none() && driven.end.is_none());
    assert!(matches!(
        driven.failure,
        Some(Error::SupervisorFailed { .. })
    ));
}

#[test]
fn a_kept_machine_is_left_to_shut_down_by_itself() {
    let mut rig = Rig::new(|_, _, stream| {
        started(stream);
        exit(stream, code(0));
    });
    let fake = Arc::clone(&rig.fake);
    thread::spawn(move || {
        while lock(&fake.asked).is_empty() {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(100));
        fake.end(EndCause::WorkloadFinished);
    });
    let driven = rig.run(&[], "x", true);
    assert_eq!(driven.end, Some(EndCause::WorkloadFinished));
    assert_eq!(rig.asked(), ["x"]);
}
