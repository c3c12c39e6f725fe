//! What a session is about: something that ends by itself, or is made to.

use std::{os::fd::BorrowedFd, time::Duration};

use microagent_protocol::LineReport;
use rustix::event::{PollFd, PollFlags};

use super::wait;
use crate::{
    exec::oom::OomWatch,
    reaper::{Child, Processes},
};

/// How long a process may take to end after the host hung up.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed process.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Something that ends.
pub(crate) trait Subject {
    /// What becomes readable when it may have ended.
    fn events(&self) -> [Option<BorrowedFd<'_>>; 2];

    /// Whether it has ended. Asked when an event happened; once true, it stays so.
    fn ended(&mut self) -> bool;

    /// A signal of the host.
    fn signal(&mut self, number: i32);

    /// How long until [`Self::tick`] is due, if it is.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// Time has passed.
    fn tick(&mut self) {}

    /// Nobody is listening any more: returns when it has ended, or will not.
    fn hang_up(&mut self);

    /// How it ended. Asked once it has.
    fn report(&self) -> LineReport;
}

/// A process of the session's own.
pub(crate) struct Process<'a> {
    child: Child,
    processes: &'a Processes,
    oom_kills: OomWatch<'a>,
}

impl<'a> Process<'a> {
    /// The process that was just started.
    pub(crate) fn new(child: Child, processes: &'a Processes, oom_kills: OomWatch<'a>) -> Self {
        Self {
            child,
            processes,
            oom_kills,
        }
    }

    /// It was told of, and need not be kept for anybody.
    pub(crate) fn bury(&self) {
        self.processes.bury(&self.child);
    }
}

impl Subject for Process<'_> {
    fn events(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [Some(self.child.exit.event()), None]
    }

    fn ended(&mut self) -> bool {
        self.processes.has_ended(&self.child)
    }

    fn signal(&mut self, number: i32) {
        self.processes.signal(&self.child, number);
    }

    /// As a terminal does, and then for sure.
    fn hang_up(&mut self) {
        for (signal, limit) in [(libc::SIGHUP, HANGUP_GRACE), (libc::SIGKILL, KILL_LIMIT)] {
            self.signal(signal);
            let event = PollFd::from_borrowed_fd(self.child.exit.event(), PollFlags::IN);
            // A failure to wait only makes it end sooner.
            let _ = wait(&mut [event], Some(limit));
            if self.ended() {
                return;
            }
        }
    }

    fn report(&self) -> LineReport {
        LineReport {
            exit: self.oom_kills.report(self.child.exit.status()),
            shell: None,
        }
    }
}
