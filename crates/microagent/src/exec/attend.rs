//! One session from its opening to its end, steered from outside and bounded in time.

use std::{
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use microagent_protocol::{LineReport, ShellOrigin, Timestamp, TtySize, supervisor::Command};

use super::{SIGKILL, Target};
use crate::{
    error::{Error, Result},
    event::RunEvent,
    io::{Control, Parts},
    run::Happening,
    session::{Session, Sinks},
    supervisor::client::Opening,
    workspaces::machine,
};

const SIGPIPE: u8 = 13;

/// How long a process may take to end after each step that asks it to.
const STEP_LIMIT: Duration = Duration::from_secs(3);

/// How long a guest may take to tell of an end it was asked for, beyond the last step.
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than the guest itself the caller waits for it to be ready: its word on why
/// it is not is worth having.
const READY_SLACK: Duration = Duration::from_secs(1);

/// How long between two looks for a supervisor that was just started.
const SOCKET_PAUSE: Duration = Duration::from_millis(5);

/// How long each part may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Until it is started.
    pub(super) ready: Option<Duration>,
    /// From its start to its end.
    pub(super) time: Option<Duration>,
    /// The signals that end it when the time is up, one after the other.
    pub(super) steps: &'static [u8],
}

/// What was seen of a session.
#[derive(Debug, Default)]
pub(super) struct Attended {
    pub(super) started_at: Option<Timestamp>,
    pub(super) exited_at: Option<Timestamp>,
    /// How it ended, if it was seen to.
    pub(super) report: Option<LineReport>,
    /// Which shell took the line.
    pub(super) shell: Option<ShellOrigin>,
    pub(super) timed_out: bool,
    pub(super) detached: bool,
}

/// Opens `command` and stays with it.
pub(super) fn attend(
    target: &Target,
    command: &Command,
    limits: Limits,
    parts: Parts,
    sinks: &Sinks,
) -> Result<Attended> {
    let ready_by = limits
        .ready
        .and_then(|limit| after(limit.saturating_add(READY_SLACK), Due::Ready));
    let opening = open(target, command, ready_by.map(|(at, _)| at))?;
    let session = Session::spawn(opening, parts.stdin, sinks.clone(), parts.sender)?;
    let mut attendant = Attendant {
        target,
        limits,
        session,
        seen: Attended::default(),
        size: None,
        steps: limits.steps.iter(),
        deadline: ready_by,
    };
    loop {
        let happening = match attendant.deadline {
            // The session's thread holds a sender until it has told of its end.
            None => parts.receiver.recv().ok(),
            Some((deadline, _)) => parts
                .receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok(),
        };
        let over = match happening {
            None => attendant.overdue()?,
            Some(Happening::SessionStarted(shell)) => {
                (parts.events)(RunEvent::Started);
                attendant.started(shell);
                false
            }
            Some(Happening::SessionEnded(ended)) => {
                attendant.ended(ended)?;
                true
            }
            Some(Happening::Control(control)) => attendant.control(control)?,
            Some(Happening::OutputFailed(error)) => {
                attendant.output_failed(error)?;
                false
            }
            // A run's affairs.
            Some(
                Happening::Prepared
                | Happening::FilesCopied(_)
                | Happening::Machine(_)
                | Happening::MachineGone,
            ) => false,
        };
        if over {
            return Ok(attendant.seen);
        }
    }
}

/// Reaches the supervisor. One that was just started may not listen yet.
fn open(target: &Target, command: &Command, by: Option<Instant>) -> Result<Opening> {
    loop {
        match target.control.open(command.clone()) {
            Err(Error::SupervisorFailed { .. })
                if machine::is_live(&target.directory)
                    && by.is_none_or(|by| Instant::now() < by) =>
            {
                thread::sleep(SOCKET_PAUSE);
            }
            opened => return opened,
        }
    }
}

struct Attendant<'a> {
    target: &'a Target,
    limits: Limits,
    session: Session,
    seen: Attended,
    size: Option<TtySize>,
    steps: std::slice::Iter<'static, u8>,
    deadline: Option<(Instant, Due)>,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// It must have started.
    Ready,
    /// Its time is up.
    Time,
    /// It should have ended for what it was sent.
    Step,
}

/// A deadline. One beyond the clock's end never comes.
fn after(limit: Duration, due: Due) -> Option<(Instant, Due)> {
    Some((Instant::now().checked_add(limit)?, due))
}

impl Attendant<'_> {
    fn has_started(&self) -> bool {
        self.seen.started_at.is_some()
    }

    fn started(&mut self, shell: Option<ShellOrigin>) {
        self.seen.started_at = Some(SystemTime::now().into());
        self.seen.shell = shell;
        self.deadline = self.limits.time.and_then(|limit| after(limit, Due::Time));
        if let Some(size) = self.size {
            self.session.resize(size);
        }
    }

    fn ended(&mut self, ended: Result<LineReport>) -> Result<()> {
        match ended {
            Ok(report) => {
                self.seen.exited_at = self.has_started().then(|| SystemTime::now().into());
                self.seen.report = Some(report);
                Ok(())
            }
            // The result says that the end was not seen.
            Err(Error::SupervisorFailed { .. }) if self.has_started() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives whether it is over by that.
    fn control(&mut self, control: Control) -> Result<bool> {
        match control {
            Control::Resize(size) => {
                self.size = Some(size);
                if self.has_started() {
                    self.session.resize(size);
                }
            }
            Control::Detach => {
                self.seen.detached = true;
                return Ok(true);
            }
            Control::Signal(signal) if self.has_started() => self.session.signal(signal),
            Control::Kill if self.has_started() => self.kill(),
            Control::Signal(signal) => return Err(Error::Cancelled { signal }),
            Control::Kill => return Err(Error::Cancelled { signal: SIGKILL }),
        }
        Ok(false)
    }

    fn kill(&mut self) {
        self.session.signal(SIGKILL);
        self.steps = [].iter();
        self.deadline = after(LAST_LIMIT, Due::Step);
    }

    /// A deadline has passed. Gives whether nothing is left to wait for.
    fn overdue(&mut self) -> Result<bool> {
        match self.deadline {
            Some((_, Due::Ready)) => {
                return Err(Error::NotReady {
                    workspace: self.target.name.clone(),
                    limit: self.limits.ready.unwrap_or_default(),
                });
            }
            Some((_, Due::Time)) => self.seen.timed_out = true,
            Some((_, Due::Step)) | None => {}
        }
        let Some(signal) = self.steps.next() else {
            return Ok(true);
        };
        self.session.signal(*signal);
        let limit = if self.steps.len() == 0 {
            LAST_LIMIT
        } else {
            STEP_LIMIT
        };
        self.deadline = after(limit, Due::Step);
        Ok(false)
    }

    fn output_failed(&mut self, error: io::Error) -> Result<()> {
        if error.kind() != io::ErrorKind::BrokenPipe {
            return Err(Error::Io {
                doing: "hand on",
                path: PathBuf::from("the command's output"),
                source: error,
            });
        }
        // As the kernel does to a program whose reader went away; what ignores it is killed.
        self.session.signal(SIGPIPE);
        self.steps = [SIGKILL].iter();
        self.deadline = after(STEP_LIMIT, Due::Step);
        Ok(())
    }
}
