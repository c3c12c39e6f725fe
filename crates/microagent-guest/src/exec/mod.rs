//! Sessions: one stream from the host, one process or one forwarded connection,
//! one thread each. This module accepts and counts them; it does not know what
//! is in a stream.
//!
//! A thread that accepts a stream serves it itself, and threads that have served stay for the next
//! one: making a thread takes as long as starting a small program.

mod host;
mod offspring;
mod oom;
mod plan;
mod pump;
mod session;
mod shell;
mod spawn;
mod terminal;
mod user;

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use microagent_protocol::guest::AGENT_PORT;

#[cfg(test)]
pub(crate) use self::pump::tests::ONE_AT_A_TIME;
use self::{oom::OomCounter, shell::Shells, spawn::null_device, user::Accounts};
use crate::{
    THREAD_STACK,
    cgroup::Workloads,
    console,
    copy::Copies,
    error::{Context, Error},
    reaper::Processes,
    vsock::Listener,
};

/// The most sessions at a time.
const MOST_SESSIONS: usize = 256;

/// The most forwarded connections at a time, beside the sessions.
const MOST_FORWARDS: usize = 512;

/// How many threads without a session stay: one accepts, the others wait for their turn.
const MOST_IDLE: usize = 3;

/// Serves sessions.
#[derive(Debug)]
pub(crate) struct Server {
    /// Only one thread at a time waits for the next stream: all of them would wake for it.
    listener: Mutex<Listener>,
    /// Threads without a session.
    idle: AtomicUsize,
    hostname: String,
    processes: Arc<Processes>,
    group: Option<Workloads>,
    accounts: Accounts,
    oom_kills: OomCounter,
    /// The null device, for processes without input.
    null: OwnedFd,
    shells: Shells,
    sessions: AtomicUsize,
    copies: Copies,
    forwards: AtomicUsize,
}

impl Server {
    /// Listens, and serves on threads from now on.
    pub(crate) fn start(hostname: &str) -> Result<Arc<Self>, Error> {
        let listener = Listener::bind(AGENT_PORT)
            .context(format_args!("listen on the vsock port {AGENT_PORT}"))?;
        let server = Arc::new(Self {
            listener: Mutex::new(listener),
            idle: AtomicUsize::new(0),
            hostname: hostname.to_owned(),
            processes: Arc::default(),
            group: Workloads::create(),
            accounts: Accounts::below(Path::new("/")),
            oom_kills: OomCounter::open(),
            null: null_device()?,
            shells: Shells::new(Path::new("/run")),
            sessions: AtomicUsize::new(0),
            copies: Copies::default(),
            forwards: AtomicUsize::new(0),
        });
        server.add_thread().context("start the session thread")?;
        Ok(server)
    }

    /// Every process the sessions started.
    pub(crate) fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// The control group they live in.
    pub(crate) fn group(&self) -> Option<&Workloads> {
        self.group.as_ref()
    }

    /// The copies under way.
    pub(crate) fn copies(&self) -> &Copies {
        &self.copies
    }

    /// How many sessions are open.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Acquire)
    }

    fn add_thread(self: &Arc<Self>) -> io::Result<()> {
        let server = Arc::clone(self);
        self.idle.fetch_add(1, Ordering::AcqRel);
        let started = thread::Builder::new()
            .name("session".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || server.work());
        if let Err(error) = started {
            self.idle.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        Ok(())
    }

    /// Serves one stream after the other, for as long as this thread is needed.
    fn work(self: Arc<Self>) {
        loop {
            let stream = self.accept();
            if self.idle.fetch_sub(1, Ordering::AcqRel) == 1
                && let Err(error) = self.add_thread()
            {
                // Somebody must accept the next stream. The host sees this one end.
                console::say(format_args!("start a session: {error}"));
                self.idle.fetch_add(1, Ordering::AcqRel);
                continue;
            }
            session::serve(stream, &self);
            if self.idle.fetch_add(1, Ordering::AcqRel) >= MOST_IDLE {
                self.idle.fetch_sub(1, Ordering::AcqRel);
                return;
            }
        }
    }

    fn accept(&self) -> File {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match listener.accept() {
                Ok(stream) => return stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of memory or descriptors: both pass.
                    console::say(format_args!("accept a session: {error}"));
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

/// A session's place among the [`MOST_SESSIONS`].
struct Place(Arc<Server>);

impl Place {
    /// A place, if there is one left.
    fn take(server: &Arc<Server>) -> Option<Self> {
        let before = server.sessions.fetch_add(1, Ordering::AcqRel);
        let place = Self(Arc::clone(server));
        (before < MOST_SESSIONS).then_some(place)
    }

    /// Makes room for another session: this one only carries a connection, and the end of the
    /// machine does not wait for it.
    fn only_forwards(self) -> Option<Forward> {
        let before = self.0.forwards.fetch_add(1, Ordering::AcqRel);
        let forward = Forward(Arc::clone(&self.0));
        (before < MOST_FORWARDS).then_some(forward)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A forwarded connection's place among the [`MOST_FORWARDS`].
struct Forward(Arc<Server>);

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.forwards.fetch_sub(1, Ordering::AcqRel);
    }
}
