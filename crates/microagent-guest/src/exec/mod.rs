//! Sessions: one stream from the host, one process or one forwarded connection,
//! one thread each. This module accepts and counts them; it does not know what
//! is in a stream.

mod plan;
mod pump;
mod session;
mod spawn;
mod terminal;
mod user;

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use microagent_protocol::guest::AGENT_PORT;

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

/// Serves sessions.
#[derive(Debug)]
pub(crate) struct Server {
    hostname: String,
    processes: Arc<Processes>,
    group: Option<Workloads>,
    /// `/proc/vmstat`, kept open for as long as somebody inside may unmount `/proc`.
    vmstat: Option<File>,
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
            hostname: hostname.to_owned(),
            processes: Arc::default(),
            group: Workloads::create(),
            vmstat: File::open("/proc/vmstat").ok(),
            sessions: AtomicUsize::new(0),
            copies: Copies::default(),
            forwards: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&server);
        thread::Builder::new()
            .name("sessions".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || serving.accept(&listener))
            .context("start the session thread")?;
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

    fn accept(self: &Arc<Self>, listener: &Listener) {
        loop {
            match listener.accept() {
                Ok(stream) => self.serve(stream),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of memory or descriptors: both pass.
                    console::say(format_args!("accept a session: {error}"));
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: File) {
        let place = Place::take(self);
        if self.sessions() > MOST_SESSIONS {
            session::refuse(
                stream,
                &format!("the guest serves at most {MOST_SESSIONS} sessions at a time"),
            );
            return;
        }
        let started = thread::Builder::new()
            .name("session".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || session::serve(stream, place));
        if let Err(error) = started {
            // The host sees the stream end.
            console::say(format_args!("start a session: {error}"));
        }
    }

    /// How often the kernel has killed a process for lack of memory.
    fn oom_kills(&self) -> u64 {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; 16 * 1024];
        let read = self
            .vmstat
            .as_ref()
            .and_then(|file| file.read_at(&mut buffer, 0).ok());
        read.and_then(|length| find_oom_kills(&buffer[..length]))
            .unwrap_or(0)
    }
}

/// A session's place among the [`MOST_SESSIONS`].
struct Place(Arc<Server>);

impl Place {
    fn take(server: &Arc<Server>) -> Self {
        server.sessions.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(server))
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

fn find_oom_kills(vmstat: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(vmstat).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_found_by_their_whole_name() {
        assert_eq!(
            find_oom_kills(b"nr_free 1\noom_kill_other 3\noom_kill 7\n"),
            Some(7)
        );
        assert_eq!(find_oom_kills(b"nr_free 1\n"), None);
        assert_eq!(find_oom_kills(&[0xff]), None);
    }
}
