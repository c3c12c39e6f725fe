//! One line under way in the shell: its pipes, its end, and how it is made to end.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use microagent_protocol::{ExitStatus, FrameKind, LineReport, ShellFate};
use rustix::{
    event::{PollFd, PollFlags},
    io::{Errno, read},
};

use crate::{
    error::{Context, Error},
    exec::{
        oom::OomWatch,
        pump::{KILL_LIMIT, Sides, Subject, wait},
    },
    reaper::{Child, Processes},
};

/// How long an interrupted line may take to be over.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);
/// How long between two interrupts: each ends one function of the shell.
const INTERRUPT_PAUSE: Duration = Duration::from_millis(250);
/// The most digits of a status, and a line's end.
const LONGEST_STATUS: usize = 16;

/// A line that was given to the shell.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    child: Child,
    processes: &'a Processes,
    oom_kills: OomWatch<'a>,
    path: PathBuf,
    /// Standard output and error; none once they are given away.
    outputs: Vec<OwnedFd>,
    /// Where the shell writes `$?`.
    end: OwnedFd,
    written: Vec<u8>,
    /// `$?`, once the line is over.
    status: Option<u8>,
    stopping: Option<Stopping>,
}

/// How far making it end has come.
#[derive(Clone, Copy, Debug)]
enum Stopping {
    /// It is interrupted again at this time, and killed at the other.
    Interrupting { again: Instant, kill: Instant },
    /// The shell is killed.
    Killed,
}

impl<'a> Line<'a> {
    pub(super) fn new(
        child: Child,
        processes: &'a Processes,
        oom_kills: OomWatch<'a>,
        (path, outputs, end): (PathBuf, Vec<OwnedFd>, OwnedFd),
    ) -> Self {
        Self {
            child,
            processes,
            oom_kills,
            path,
            outputs,
            end,
            written: Vec::new(),
            status: None,
            stopping: None,
        }
    }

    /// Where its output is read.
    pub(crate) fn sides(&self) -> Result<Sides, Error> {
        let share = |fd: &OwnedFd| fd.try_clone().context("share a line's output");
        let kinds = [FrameKind::Stdout, FrameKind::Stderr].into_iter();
        Ok(Sides {
            input: None,
            outputs: kinds
                .zip(&self.outputs)
                .map(|(kind, fd)| Ok((kind, share(fd)?)))
                .collect::<Result<_, Error>>()?,
            terminal: None,
        })
    }

    /// `$?`, if the shell came back from the line.
    pub(crate) fn status(&self) -> Option<u8> {
        self.status
    }

    /// What its background jobs may still write to.
    pub(super) fn take_outputs(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.outputs)
    }

    /// Reads what the shell has written of `$?`.
    fn read_status(&mut self) {
        let mut buffer = [0_u8; LONGEST_STATUS];
        while self.status.is_none() && self.written.len() < LONGEST_STATUS {
            match read(&self.end, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(count) => self.written.extend(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
            self.status = parse_status(&self.written);
        }
    }

    fn shell_ended(&self) -> bool {
        self.processes.has_ended(&self.child)
    }

    fn interrupt(&mut self) {
        let now = Instant::now();
        let again = now + INTERRUPT_PAUSE;
        let kill = match self.stopping {
            None => now + INTERRUPT_GRACE,
            Some(Stopping::Interrupting { kill, .. }) => kill,
            Some(Stopping::Killed) => return,
        };
        // Between two lines it would end the shell.
        if self.ended() {
            return;
        }
        self.processes.signal(&self.child, libc::SIGINT);
        self.stopping = Some(Stopping::Interrupting { again, kill });
    }

    fn kill(&mut self) {
        self.processes.signal(&self.child, libc::SIGKILL);
        self.stopping = Some(Stopping::Killed);
    }
}

impl Subject for Line<'_> {
    fn events(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [Some(self.end.as_fd()), Some(self.child.exit.event())]
    }

    fn ended(&mut self) -> bool {
        // The shell's end first: what it wrote before is there then.
        let over = self.shell_ended();
        self.read_status();
        over || self.status.is_some()
    }

    fn signal(&mut self, number: i32) {
        if number == libc::SIGKILL {
            self.kill();
        } else if self.stopping.is_none() {
            self.interrupt();
        }
    }

    fn due(&self) -> Option<Duration> {
        match self.stopping {
            Some(Stopping::Interrupting { again, kill }) => {
                Some(again.min(kill).saturating_duration_since(Instant::now()))
            }
            Some(Stopping::Killed) | None => None,
        }
    }

    fn tick(&mut self) {
        match self.stopping {
            Some(Stopping::Interrupting { kill, .. }) if kill <= Instant::now() => self.kill(),
            Some(Stopping::Interrupting { .. }) => self.interrupt(),
            Some(Stopping::Killed) | None => {}
        }
    }

    fn hang_up(&mut self) {
        if self.stopping.is_none() {
            self.interrupt();
        }
        while !self.ended() {
            let limit = self.due().unwrap_or(KILL_LIMIT);
            let given_up = matches!(self.stopping, Some(Stopping::Killed));
            let mut events: Vec<_> = self
                .events()
                .into_iter()
                .flatten()
                .map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN))
                .collect();
            // A failure to wait only makes it end sooner.
            let _ = wait(&mut events, Some(limit));
            drop(events);
            if given_up {
                return;
            }
            self.tick();
        }
    }

    fn report(&self) -> LineReport {
        let came_back = self.status.map(|code| ExitStatus::Exited { code });
        let fate = match (self.shell_ended(), self.stopping) {
            (false, _) => ShellFate::Kept,
            (true, Some(Stopping::Killed)) => ShellFate::Killed,
            (true, _) => ShellFate::Ended,
        };
        let status = came_back.as_ref().or(self.child.exit.status());
        LineReport {
            exit: self.oom_kills.report(status),
            shell: Some(fate),
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        for kind in ["", "out", "err", "end"] {
            // They go with the shell's directory as well.
            let _ = fs::remove_file(self.path.with_extension(kind));
        }
    }
}

/// A status as the shell writes it: up to three digits and the end of the line.
fn parse_status(written: &[u8]) -> Option<u8> {
    let text = written.strip_suffix(b"\n")?;
    std::str::from_utf8(text).ok()?.parse().ok()
}
