//! Steering a machine that was launched: setup commands, the command, its end, the machine's end.
//!
//! One loop takes everything that happens, one thing at a time.

use std::{
    collections::VecDeque,
    io::{self, Read},
    path::PathBuf,
    sync::mpsc::{Receiver, Sender},
    thread,
    time::{Duration, Instant, SystemTime},
};

use microagent_protocol::{
    Backend, EndCause, PublishedPort, State, Timestamp, TtySize,
    exec::{ExecRequest, ExitReport, ExitStatus},
    supervisor::{Event, EventKind},
};

use super::Happening;
use crate::{
    config::Config,
    copy,
    error::{Error, Result},
    event::RunEvent,
    io::{Control, EventSink},
    options::HostFile,
    session::{Session, Sinks},
    supervisor::client::Supervisor,
    trace::MachinePhases,
};

const SIGKILL: u8 = 9;
const SIGPIPE: u8 = 13;

/// How long a command whose output nobody takes may live on.
const BROKEN_PIPE_GRACE: Duration = Duration::from_secs(1);

/// How long a machine may live on after a session with it broke off.
const LOST_LIMIT: Duration = Duration::from_secs(10);

/// How long the last output may take to come after the supervisor is gone.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Something that is done before the command runs.
pub(crate) enum Setup {
    /// Files of the host are copied in.
    Files(Vec<HostFile>),
    /// A script is run.
    Script {
        script: String,
        request: ExecRequest,
    },
}

/// What was seen of a machine and its command.
#[derive(Debug, Default)]
pub(crate) struct Driven {
    pub(crate) backend: Option<Backend>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) exited_at: Option<Timestamp>,
    pub(crate) exit: Option<ExitReport>,
    pub(crate) ports: Vec<PublishedPort>,
    pub(crate) state: Option<State>,
    pub(crate) end: Option<EndCause>,
    pub(crate) detail: Option<String>,
    pub(crate) vmm_ms: Option<u64>,
    pub(crate) ready_ms: Option<u64>,
    pub(crate) setup: Option<Duration>,
    pub(crate) command: Option<Duration>,
    pub(crate) shutdown: Option<Duration>,
    /// Why the command was not run or its output was lost.
    pub(crate) failure: Option<Error>,
}

enum Stage {
    Setup(String),
    Command,
    Over,
}

/// The loop's state.
pub(crate) struct Drive<'a> {
    config: &'a Config,
    supervisor: &'a Supervisor,
    events: &'a EventSink,
    sender: &'a Sender<Happening>,
    sinks: &'a Sinks,
    /// Whether the machine is left to end by itself.
    clean: bool,
    seen: Driven,
    stage: Stage,
    session: Option<Session>,
    running: bool,
    size: Option<TtySize>,
    begun: Instant,
    over: Option<Instant>,
    deadline: Option<(Instant, Overdue)>,
    phases: MachinePhases,
}

#[derive(Clone, Copy)]
enum Overdue {
    /// The machine should have ended by itself, or the command for want of a reader.
    Command,
    /// The machine does not end.
    Machine,
}

impl<'a> Drive<'a> {
    pub(crate) fn new(
        config: &'a Config,
        supervisor: &'a Supervisor,
        events: &'a EventSink,
        sender: &'a Sender<Happening>,
        sinks: &'a Sinks,
        clean: bool,
    ) -> Self {
        Self {
            config,
            supervisor,
            events,
            sender,
            sinks,
            clean,
            seen: Driven::default(),
            stage: Stage::Over,
            session: None,
            running: false,
            size: None,
            begun: Instant::now(),
            over: None,
            deadline: None,
            phases: MachinePhases::of(supervisor.name()),
        }
    }

    /// Runs the setup commands and the command; returns when the machine is gone.
    pub(crate) fn run(
        mut self,
        receiver: &Receiver<Happening>,
        mut setups: VecDeque<Setup>,
        workload: ExecRequest,
        stdin: Option<Box<dyn Read + Send>>,
    ) -> Driven {
        let mut command = Some((workload, stdin));
        let has_setup = !setups.is_empty();
        self.next(&mut setups, &mut command);
        let mut gone = false;
        loop {
            if gone && self.session.is_none() {
                break;
            }
            let Some(happening) = self.wait(receiver) else {
                if gone {
                    break; // The last output did not come.
                }
                if self.overdue() {
                    break;
                }
                continue;
            };
            match happening {
                Happening::Control(control) => self.control(control),
                Happening::Machine(event) => self.machine(event),
                Happening::MachineGone => {
                    gone = true;
                    self.deadline = Some((Instant::now() + DRAIN_LIMIT, Overdue::Machine));
                }
                Happening::SessionStarted(_) => self.started(has_setup),
                Happening::SessionEnded(ended) => {
                    self.session = None;
                    if self.ended(ended.map(|report| report.exit)) {
                        self.next(&mut setups, &mut command);
                    }
                }
                Happening::OutputFailed(error) => self.output_failed(error),
                Happening::FilesCopied(Ok(())) => self.next(&mut setups, &mut command),
                Happening::FilesCopied(Err(error)) => self.files_not_copied(error),
                Happening::Prepared => {}
            }
        }
        self.seen.shutdown = self.over.map(|over| over.elapsed());
        self.seen
    }

    fn wait(&self, receiver: &Receiver<Happening>) -> Option<Happening> {
        let Some((deadline, _)) = self.deadline else {
            // `self.sender` keeps the channel open.
            return receiver.recv().ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).ok()
    }

    /// Does what a deadline asks for; true if there is nothing left to wait for.
    fn overdue(&mut self) -> bool {
        match self.deadline.take() {
            Some((_, Overdue::Command)) => {
                self.end_machine();
                false
            }
            Some((_, Overdue::Machine)) => {
                self.supervisor.let_go();
                true
            }
            None => true,
        }
    }

    /// Starts the next setup command, or the command.
    fn next(
        &mut self,
        setups: &mut VecDeque<Setup>,
        command: &mut Option<(ExecRequest, Option<Box<dyn Read + Send>>)>,
    ) {
        let (stage, request, stdin, sinks) = if let Some(setup) = setups.pop_front() {
            let (script, request) = match setup {
                Setup::Files(files) => return self.copy(files),
                Setup::Script { script, request } => (script, request),
            };
            (self.events)(RunEvent::Setup {
                command: script.clone(),
            });
            let stderr = &self.sinks.stderr;
            let sinks = Sinks {
                stdout: stderr.clone(),
                stderr: stderr.clone(),
                own: false,
            };
            (Stage::Setup(script), request, None, sinks)
        } else if let Some((mut request, stdin)) = command.take() {
            if request.tty.is_some() {
                request.tty = self.size.or(request.tty);
            }
            (Stage::Command, request, stdin, self.sinks.clone())
        } else {
            return;
        };
        self.stage = stage;
        let session = self
            .supervisor
            .exec(request)
            .and_then(|exec| Session::spawn(exec, stdin, sinks, self.sender.clone()));
        match session {
            Ok(session) => self.session = Some(session),
            Err(error) => self.lost(error),
        }
    }

    /// Copies files in, in a thread of its own, so that the caller can give up meanwhile.
    fn copy(&self, files: Vec<HostFile>) {
        let (control, sender) = (self.supervisor.control(), self.sender.clone());
        let events = self.events.clone();
        thread::spawn(move || {
            let copied = files.iter().try_for_each(|file| {
                events(RunEvent::File {
                    src: file.src.clone(),
                });
                copy::inject(&control, file)
            });
            // Nobody listens any more when the run was given up.
            let _ = sender.send(Happening::FilesCopied(copied));
        });
    }

    /// A machine that is on its way out says why by itself.
    fn files_not_copied(&mut self, error: Error) {
        match error {
            Error::CopyLost { .. } => self.lost(error),
            error => self.fail(error),
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Resize(size) => {
                self.size = Some(size);
                if let (true, Some(session)) = (self.running, &self.session) {
                    session.resize(size);
                }
            }
            Control::Signal(signal) => match &self.session {
                Some(session) if self.running => session.signal(signal),
                _ if self.over.is_some() => {} // It ended already.
                _ => self.fail(Error::Cancelled { signal }),
            },
            Control::Kill | Control::Detach if self.running || self.over.is_some() => {
                self.end_machine();
            }
            Control::Kill | Control::Detach => self.fail(Error::Cancelled { signal: SIGKILL }),
        }
    }

    fn machine(&mut self, event: Event) {
        self.seen.state = Some(event.state);
        self.phases.see(&event);
        match &event.kind {
            EventKind::Starting { backend, .. } => self.seen.backend = Some(*backend),
            EventKind::PortsPublished { ports } => self.seen.ports.clone_from(ports),
            EventKind::VmmStarted { ms, .. } => self.seen.vmm_ms = Some(*ms),
            EventKind::GuestReady { ms } => self.seen.ready_ms = Some(*ms),
            EventKind::Ended { cause, detail, .. } => {
                self.seen.end = Some(*cause);
                self.seen.detail.clone_from(detail);
            }
            _ => {}
        }
        (self.events)(RunEvent::Machine(event));
    }

    fn started(&mut self, has_setup: bool) {
        if !matches!(self.stage, Stage::Command) {
            return;
        }
        if has_setup {
            self.seen.setup = Some(self.begun.elapsed());
        }
        self.running = true;
        self.begun = Instant::now();
        self.seen.started_at = Some(SystemTime::now().into());
        if let (Some(session), Some(size)) = (&self.session, self.size) {
            session.resize(size);
        }
        (self.events)(RunEvent::Started);
    }

    /// Takes a session's end; true if the next one may start.
    fn ended(&mut self, ended: Result<ExitReport>) -> bool {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if matches!(stage, Stage::Command) {
            self.seen.exited_at = Some(SystemTime::now().into());
            self.seen.command = self.running.then(|| self.begun.elapsed());
            self.running = false;
            self.over = Some(Instant::now());
        }
        match (stage, ended) {
            (Stage::Setup(_), Ok(report)) if report.status == (ExitStatus::Exited { code: 0 }) => {
                return true;
            }
            (Stage::Setup(command), Ok(report)) => {
                let outcome = describe(&report.status);
                self.fail(Error::SetupFailed { command, outcome });
            }
            (Stage::Command, Ok(report)) => {
                self.seen.exit = Some(report);
                if self.clean {
                    self.expect_end(self.config.timeouts.grace);
                } else {
                    self.end_machine();
                }
            }
            (Stage::Setup(_) | Stage::Command, Err(error)) => self.lost(error),
            (Stage::Over, _) => {}
        }
        false
    }

    /// A session broke off. The machine's end says why, and may still be on its way: a machine
    /// that is killed now could not tell.
    fn lost(&mut self, error: Error) {
        self.seen.failure.get_or_insert(error);
        if self.deadline.is_none() {
            self.deadline = Some((Instant::now() + LOST_LIMIT, Overdue::Command));
        }
    }

    fn output_failed(&mut self, error: io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe && self.running {
            // As the kernel does to a program whose reader went away.
            if let Some(session) = &self.session {
                session.signal(SIGPIPE);
            }
            self.deadline = Some((Instant::now() + BROKEN_PIPE_GRACE, Overdue::Command));
        } else if error.kind() != io::ErrorKind::BrokenPipe {
            let path = PathBuf::from("the command's output");
            self.fail(Error::Io {
                doing: "hand on",
                path,
                source: error,
            });
        }
    }

    /// Gives the run up for this reason, the first that comes.
    fn fail(&mut self, error: Error) {
        self.seen.failure.get_or_insert(error);
        self.end_machine();
    }

    fn end_machine(&mut self) {
        self.supervisor.kill();
        self.expect_end(Duration::ZERO);
    }

    fn expect_end(&mut self, grace: Duration) {
        let limit = self.config.timeouts.shutdown + grace;
        self.deadline = Some((Instant::now() + limit, Overdue::Machine));
    }
}

/// How a process ended, for people.
pub(crate) fn describe(status: &ExitStatus) -> String {
    match status {
        ExitStatus::Exited { code } => format!("it exited with code {code}"),
        ExitStatus::Signaled { signal } => {
            format!("{} ended it", crate::signal::name(*signal))
        }
        ExitStatus::FailedToStart { message, .. } => message.clone(),
    }
}
