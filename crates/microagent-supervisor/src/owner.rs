//! Who the machine lives for, and noticing when they are gone.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    crew::{Crew, lock},
    engine::Message,
    lifecycle::Input,
};

/// How long the launching process may take to connect as the owner.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Launcher,
    Connection,
}

/// The owner of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    who: Arc<Mutex<Who>>,
    /// Set before the engine is told.
    gone: Arc<AtomicBool>,
    outbox: Sender<Message>,
}

impl Owner {
    /// Nobody; somebody may still claim it.
    pub(crate) fn nobody(outbox: Sender<Message>, gone: Arc<AtomicBool>) -> Self {
        Self {
            who: Arc::new(Mutex::new(Who::Nobody)),
            gone,
            outbox,
        }
    }

    /// The process behind `pidfd`, until it connects as the owner, which it
    /// has to do soon.
    pub(crate) fn launcher(
        outbox: Sender<Message>,
        gone: Arc<AtomicBool>,
        pidfd: OwnedFd,
        crew: &Crew,
    ) -> std::io::Result<Self> {
        let owner = Self {
            who: Arc::new(Mutex::new(Who::Launcher)),
            gone,
            outbox,
        };
        let watching = owner.clone();
        crew.spawn("launcher", move || {
            wait_readable(&pidfd, CLAIM_LIMIT);
            watching.gone(Who::Launcher);
        })?;
        Ok(owner)
    }

    /// Makes a connection the owner; gives whether it is now. The first one wins.
    pub(crate) fn claim(&self) -> bool {
        let mut who = lock(&self.who);
        let free = *who != Who::Connection;
        *who = Who::Connection;
        free
    }

    /// The connection that claimed it ended.
    pub(crate) fn connection_gone(&self) {
        self.gone(Who::Connection);
    }

    fn gone(&self, gone: Who) {
        if *lock(&self.who) == gone {
            self.gone.store(true, Ordering::SeqCst);
            // An engine that is gone needs no more reason to end.
            let _ = self.outbox.send(Message::Happened(Input::OwnerGone));
        }
    }
}

fn wait_readable(fd: &OwnedFd, limit: Duration) {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::error!("cannot watch the launching process: {error}");
                return;
            }
        }
    }
}
