//! Relaying exec sessions between clients and the guest.
//!
//! One session is one stream on either side and two threads. Frames are passed
//! on as they come, one at a time: nothing is buffered here but the frame in
//! hand, so whoever does not read slows only the one who writes to it.

mod kept;
mod open;

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use microagent_protocol::{
    ExitStatus, Frame, FrameError, FrameKind, FrameReader, LineReport,
    exec::ExitReport,
    frame::{write_frame, write_json},
    supervisor::{ErrorKind, ErrorReport},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) use self::{
    kept::{Settled, settled},
    open::{LineOpened, Opened, open, open_copy, open_line},
};
use crate::{
    crew::{Crew, lock},
    events::hang_up,
    result::Capture,
    text::harmless,
};

/// The most sessions of one machine at a time.
pub(crate) const MAX_SESSIONS: usize = 128;

/// The sessions of one machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    guests: HashMap<u64, Option<UnixStream>>,
    /// Streams whose session is over.
    kept: Vec<FrameReader<UnixStream>>,
    closed: bool,
}

impl Sessions {
    /// A place among the sessions.
    pub(crate) fn admit(&self) -> Result<Seat, ErrorReport> {
        let mut open = lock(&self.0);
        if open.closed {
            return Err(closed());
        }
        if open.guests.len() >= MAX_SESSIONS {
            return Err(ErrorReport::new(
                ErrorKind::Transient,
                format!("{MAX_SESSIONS} sessions are open in this workspace, which is the most."),
            )
            .remedy("Wait for one of them to end."));
        }
        open.next += 1;
        let id = open.next;
        open.guests.insert(id, None);
        Ok(Seat {
            sessions: self.clone(),
            id,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.0).guests.len()
    }

    /// Ends every session and refuses new ones.
    pub(crate) fn close(&self) {
        let mut open = lock(&self.0);
        open.closed = true;
        for stream in open.guests.values().flatten() {
            hang_up(stream, Shutdown::Both);
        }
        for guest in open.kept.drain(..) {
            hang_up(guest.get_ref(), Shutdown::Both);
        }
    }

    /// Keeps a stream whose session has come to its proper end, for the next session.
    pub(crate) fn keep(&self, guest: FrameReader<UnixStream>) {
        let mut open = lock(&self.0);
        if open.closed || open.kept.len() >= kept::MOST_KEPT {
            hang_up(guest.get_ref(), Shutdown::Both);
        } else {
            open.kept.push(guest);
        }
    }

    /// A stream that can be used at once.
    fn kept(&self) -> Option<FrameReader<UnixStream>> {
        let mut open = lock(&self.0);
        while let Some(guest) = open.kept.pop() {
            // The agent has nothing to say; one that does is gone.
            if kept::is_silent(guest.get_ref()) {
                return Some(guest);
            }
        }
        None
    }
}

fn closed() -> ErrorReport {
    ErrorReport::new(
        ErrorKind::Conflict,
        "The machine ended or was cut off before the process was started.",
    )
}

/// A place among the sessions, free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    sessions: Sessions,
    id: u64,
}

impl Seat {
    /// Hands over the guest's side, so that it can be ended from outside.
    pub(crate) fn hold(&self, stream: UnixStream) -> Result<(), ErrorReport> {
        let mut open = lock(&self.sessions.0);
        if open.closed {
            return Err(closed());
        }
        open.guests.insert(self.id, Some(stream));
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.sessions.0).guests.remove(&self.id);
    }
}

/// What a session tells while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The process ended; the client is told next. It comes first so that
    /// whatever the client does about it comes second.
    Exiting(ExitReport),
    /// The session is over.
    Over(Outcome),
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended and the client was told, unless it was gone.
    Exited,
    /// The guest's side ended without a word, or the client's did first.
    Lost,
    /// The guest sent what it must not.
    Violation(String),
}

/// What to do when the client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orphan {
    /// End the session: the agent ends the process.
    End,
    /// Let the process run on; its output goes to the capture alone.
    Detach,
}

/// One session under way.
pub(crate) struct Relay {
    pub(crate) client: FrameReader<UnixStream>,
    pub(crate) guest: FrameReader<UnixStream>,
    pub(crate) orphan: Orphan,
    /// Whether the process has a standard input to close.
    pub(crate) stdin: bool,
    pub(crate) capture: Option<Arc<Mutex<Capture>>>,
    /// Held until the guest's side is over.
    pub(crate) seat: Seat,
}

/// The guest's stream of a session that is over on that side, and whether it is on the client's.
#[derive(Debug, Default)]
struct Rest {
    guest: Option<FrameReader<UnixStream>>,
    /// Whether everything the client said was passed on whole.
    client_over: Option<bool>,
}

impl Rest {
    /// Keeps the stream once nobody uses it any more.
    fn keep(&mut self, sessions: &Sessions) {
        let Some(whole) = self.client_over else {
            return;
        };
        match self.guest.take() {
            Some(guest) if whole => sessions.keep(guest),
            Some(guest) => hang_up(guest.get_ref(), Shutdown::Both),
            None => {}
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// The guest's side is over and the client was told what there was to tell.
    done: AtomicBool,
    /// The client went away.
    detached: AtomicBool,
    rest: Mutex<Rest>,
}

impl Relay {
    /// Relays until the client's side is over.
    pub(crate) fn run(
        self,
        crew: &Crew,
        notify: impl Fn(Notice) + Send + 'static,
    ) -> io::Result<()> {
        let Self {
            mut client,
            mut guest,
            orphan,
            stdin,
            capture,
            seat,
        } = self;
        let shared = Arc::new(Shared::default());
        let sessions = seat.sessions.clone();
        let mut to_client = client.get_ref().try_clone()?;
        let mut to_guest = guest.get_ref().try_clone()?;
        let down = Down {
            shared: Arc::clone(&shared),
            orphan,
            capture,
            notify,
        };
        crew.spawn("session", move || {
            let outcome = down.run(&mut guest, &mut to_client);
            down.shared.done.store(true, Ordering::SeqCst);
            let ended_well = outcome == Outcome::Exited;
            if !ended_well {
                hang_up(guest.get_ref(), Shutdown::Both);
            }
            (down.notify)(Notice::Over(outcome));
            hang_up(&to_client, Shutdown::Both);
            if ended_well {
                let mut rest = lock(&down.shared.rest);
                rest.guest = Some(guest);
                rest.keep(&seat.sessions);
            }
            drop(seat);
        })?;
        let whole = up(&mut client, &mut to_guest, stdin);
        let mut rest = lock(&shared.rest);
        let gone = !shared.done.load(Ordering::SeqCst);
        if gone {
            shared.detached.store(true, Ordering::SeqCst);
        }
        if gone && orphan == Orphan::End {
            hang_up(&to_guest, Shutdown::Both);
            rest.client_over = Some(false);
        } else {
            rest.client_over = Some(whole);
        }
        rest.keep(&sessions);
        Ok(())
    }
}

/// Guest to client.
struct Down<N> {
    shared: Arc<Shared>,
    orphan: Orphan,
    capture: Option<Arc<Mutex<Capture>>>,
    notify: N,
}

impl<N: Fn(Notice)> Down<N> {
    fn run(&self, guest: &mut FrameReader<UnixStream>, client: &mut UnixStream) -> Outcome {
        loop {
            let frame = match guest.read() {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => return Outcome::Lost,
                Err(error) => return Outcome::Violation(harmless(&error.to_string(), 500)),
            };
            match frame.kind {
                FrameKind::Stdout => self.keep(|capture| capture.stdout(frame.payload)),
                FrameKind::Stderr => self.keep(|capture| capture.stderr(frame.payload)),
                FrameKind::StdinCredit if frame.payload.len() == 4 => {}
                FrameKind::Exit => {
                    return match exit(frame) {
                        Ok(report) => self.exit(&report, client),
                        Err(detail) => Outcome::Violation(detail),
                    };
                }
                kind => {
                    return Outcome::Violation(format!("it sent a {kind:?} frame in a session"));
                }
            }
            if !self.pass(frame, client) {
                return Outcome::Lost;
            }
        }
    }

    fn keep(&self, keep: impl FnOnce(&mut Capture)) {
        if let Some(capture) = &self.capture {
            keep(&mut lock(capture));
        }
    }

    /// Gives whether the session goes on.
    fn pass(&self, frame: Frame<'_>, client: &mut UnixStream) -> bool {
        if self.shared.detached.load(Ordering::SeqCst)
            || write_frame(client, frame.kind, frame.payload).is_ok()
        {
            return true;
        }
        // Its reader finds out as well and says so; here only the bytes are let go.
        hang_up(client, Shutdown::Both);
        self.orphan == Orphan::Detach
    }

    fn exit(&self, report: &LineReport, client: &mut UnixStream) -> Outcome {
        self.keep(|capture| capture.exited(report.exit.clone()));
        // A client that leaves on the exit frame was not lost.
        self.shared.done.store(true, Ordering::SeqCst);
        (self.notify)(Notice::Exiting(report.exit.clone()));
        if !self.shared.detached.load(Ordering::SeqCst)
            && let Err(error) = write_json(client, FrameKind::Exit, report)
        {
            tracing::debug!("a client did not wait for the exit: {error}");
        }
        Outcome::Exited
    }
}

/// The guest's word on an exit, made harmless.
fn exit(frame: Frame<'_>) -> Result<LineReport, String> {
    let mut report: LineReport = frame
        .json()
        .map_err(|error| harmless(&error.to_string(), 500))?;
    if let ExitStatus::FailedToStart { message, .. } = &mut report.exit.status {
        *message = harmless(message, 2_000);
    }
    Ok(report)
}

/// Client to guest, until the client is gone for good; a guest's side that is over is the other
/// direction's to tell. Gives whether everything that was passed on was so as a whole.
fn up(client: &mut FrameReader<UnixStream>, guest: &mut UnixStream, stdin: bool) -> bool {
    let mut open = stdin;
    let mut whole = true;
    loop {
        let frame = match client.read() {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!("a client's session failed: {error}");
                hang_up(client.get_ref(), Shutdown::Both);
                break;
            }
        };
        let allowed = match frame.kind {
            FrameKind::Stdin => open,
            FrameKind::StdinEof => std::mem::take(&mut open),
            FrameKind::Signal => matches!(frame.payload, [1..=64]),
            FrameKind::Resize => frame.payload.len() == 4,
            _ => false,
        };
        if !allowed {
            tracing::warn!("a client sent a {:?} frame out of turn", frame.kind);
            hang_up(client.get_ref(), Shutdown::Both);
            break;
        }
        if write_frame(guest, frame.kind, frame.payload).is_err() {
            // No more of it matters, but whether the client stays still does.
            whole = false;
            break;
        }
    }
    if whole
        && open
        && let Err(error) = write_frame(guest, FrameKind::StdinEof, &[])
    {
        tracing::debug!("the end of the input could not be passed on: {error}");
        whole = false;
    }
    wait_hangup(client.get_ref());
    whole
}

/// Whether both directions of a connection are over.
pub(crate) fn has_hung_up(stream: &UnixStream) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
    poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Waits until both directions of a connection are over.
pub(crate) fn wait_hangup(stream: &UnixStream) {
    loop {
        let mut ready = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
        match poll(&mut ready, None) {
            Ok(_) => return,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!("cannot wait for a client to hang up: {error}");
                return;
            }
        }
    }
}
