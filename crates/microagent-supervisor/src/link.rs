//! The guest link's control connection: hello, configure, ready, going down.
//!
//! What comes over it was written by the guest. Every message is bounded by
//! the framing, texts are made harmless, and what comes out of turn is a
//! violation. Deadlines are the engine's: it ends a silent guest by ending the
//! machine, and this link with it.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use microagent_protocol::{
    FrameKind, FrameReader,
    frame::write_json,
    guest::{BootConfig, DiskMount, GUEST_PROTOCOL, GuestMessage, GuestNetwork, HostMessage},
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    Error,
    crew::{Crew, lock},
    events::hang_up,
    lifecycle::Input,
    peer,
    text::harmless,
};

/// How long a control message may wait for a guest that does not read.
const WRITE_LIMIT: Duration = Duration::from_millis(500);

/// What every boot of this workspace is told.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) hostname: String,
    pub(crate) network: Option<GuestNetwork>,
    pub(crate) disks: Vec<DiskMount>,
    pub(crate) mediation: Vec<u16>,
}

impl Introduction {
    fn configure(&self) -> io::Result<HostMessage> {
        let mut entropy = [0_u8; 64];
        getrandom::fill(&mut entropy).map_err(io::Error::other)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(HostMessage::Configure(Box::new(BootConfig {
            hostname: self.hostname.clone(),
            // 64 bits of nanoseconds last until 2554.
            unix_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
            network: self.network.clone(),
            disks: self.disks.clone(),
            mediation: self.mediation.clone(),
        })))
    }
}

/// The link to one boot attempt's guest. Dropping it cuts the connection and
/// stops listening.
#[derive(Debug)]
pub(crate) struct Link {
    path: PathBuf,
    stream: Arc<Mutex<Slot>>,
    /// Its other end is watched by the listening thread.
    _alive: UnixStream,
    over: Option<Over>,
}

/// Knows when everything a guest said was passed on.
#[derive(Debug)]
pub(crate) struct Over(Receiver<()>);

impl Over {
    /// Waits for it, at most `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        // Nothing is ever sent: the sender goes away with the thread.
        let _ = self.0.recv_timeout(limit);
    }
}

#[derive(Debug)]
enum Slot {
    Waiting,
    Up(UnixStream),
    Cut,
}

impl Link {
    /// Listens at `path` for one guest, and tells `sink` what it says.
    pub(crate) fn listen(
        path: &Path,
        introduction: Introduction,
        crew: &Crew,
        sink: impl Fn(Input) + Send + 'static,
    ) -> Result<Self, Error> {
        let listener = UnixListener::bind(path).map_err(Error::file("listen at", path))?;
        let (alive, watched) =
            UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
        let stream = Arc::new(Mutex::new(Slot::Waiting));
        let (reading, over): (Sender<()>, _) = channel();
        let link = Self {
            path: path.to_owned(),
            stream: Arc::clone(&stream),
            _alive: alive,
            over: Some(Over(over)),
        };
        let path = path.to_owned();
        crew.spawn("guest-link", move || {
            let _reading = reading;
            serve(listener, &path, &watched, &stream, &introduction, &sink);
        })
        .map_err(Error::system("start a thread"))?;
        Ok(link)
    }

    /// For the one who must not overtake the guest's last words. Given once.
    pub(crate) fn over(&mut self) -> Option<Over> {
        self.over.take()
    }

    /// Tells the guest something. A guest that does not read is an error soon.
    pub(crate) fn send(&self, message: &HostMessage) -> io::Result<()> {
        match &mut *lock(&self.stream) {
            Slot::Up(stream) => {
                write_json(stream, FrameKind::Control, message).map_err(io::Error::other)
            }
            Slot::Waiting | Slot::Cut => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Slot::Up(stream) = std::mem::replace(&mut *lock(&self.stream), Slot::Cut) {
            hang_up(&stream, Shutdown::Both);
        }
        unlink(&self.path);
    }
}

/// Removes a socket; one that is gone already is fine.
pub(crate) fn unlink(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// Waits for a connection; `None` when `watched` was closed.
pub(crate) fn accept(
    listener: &UnixListener,
    watched: &UnixStream,
) -> io::Result<Option<UnixStream>> {
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(watched.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !ready[1].revents().is_empty() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => return Ok(Some(stream)),
            // The one who knocked went away again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

fn serve(
    listener: UnixListener,
    path: &Path,
    watched: &UnixStream,
    slot: &Mutex<Slot>,
    introduction: &Introduction,
    sink: &impl Fn(Input),
) {
    let mut reader = loop {
        let stream = match accept(&listener, watched) {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => {
                tracing::error!("cannot accept the guest's connection: {error}");
                return sink(Input::LinkLost);
            }
        };
        match greet(stream, slot, introduction, sink) {
            Ok(Some(reader)) => break reader,
            // It left without a hello: the next one may be the agent.
            Ok(None) => {}
            Err(input) => return sink(input),
        }
    };
    // One hello is all there ever is.
    drop(listener);
    unlink(path);
    let end = listen_to(&mut reader, sink);
    // The agent powers off once it knows that it was heard.
    hang_up(reader.get_ref(), Shutdown::Both);
    sink(end);
}

/// The first message of a connection, and our answer to it.
fn greet(
    stream: UnixStream,
    slot: &Mutex<Slot>,
    introduction: &Introduction,
    sink: &impl Fn(Input),
) -> Result<Option<FrameReader<UnixStream>>, Input> {
    if let Err(error) = peer::check_machine(&stream) {
        tracing::warn!("a connection to the guest link is refused: {error}");
        return Ok(None);
    }
    let lost = |error: io::Error| {
        tracing::warn!("the guest link failed: {error}");
        Input::LinkLost
    };
    stream.set_write_timeout(Some(WRITE_LIMIT)).map_err(lost)?;
    let writer = stream.try_clone().map_err(lost)?;
    {
        let mut slot = lock(slot);
        if matches!(*slot, Slot::Cut) {
            return Err(Input::LinkLost);
        }
        *slot = Slot::Up(writer);
    }
    let mut reader = FrameReader::new(stream);
    let message = match read(&mut reader)? {
        Some(message) => message,
        None => return Ok(None),
    };
    let GuestMessage::Hello {
        protocol,
        kernel_release,
        kernel_ms,
    } = message
    else {
        return Err(Input::Violation {
            detail: "its first message was not a hello".to_owned(),
        });
    };
    if protocol != GUEST_PROTOCOL {
        return Err(Input::GuestBootFailed {
            reason: format!(
                "the guest agent speaks protocol {protocol}, the supervisor {GUEST_PROTOCOL}; \
                 rebuild the initramfs"
            ),
        });
    }
    sink(Input::Hello {
        kernel_release: harmless(&kernel_release, 128),
        kernel_ms,
    });
    let configure = introduction.configure().map_err(lost)?;
    if let Slot::Up(stream) = &mut *lock(slot) {
        write_json(stream, FrameKind::Control, &configure)
            .map_err(|error| lost(io::Error::other(error)))?;
    }
    Ok(Some(reader))
}

/// Everything after the hello; gives how it ended.
fn listen_to(reader: &mut FrameReader<UnixStream>, sink: &impl Fn(Input)) -> Input {
    let mut ready = false;
    let mut going_down = 0;
    loop {
        let message = match read(reader) {
            Ok(Some(message)) => message,
            Ok(None) => return Input::LinkLost,
            Err(input) => return input,
        };
        match message {
            GuestMessage::Hello { .. } => {
                return Input::Violation {
                    detail: "it said hello twice".to_owned(),
                };
            }
            GuestMessage::Ready { .. } if ready => {
                return Input::Violation {
                    detail: "it said ready twice".to_owned(),
                };
            }
            GuestMessage::Ready { .. } => {
                ready = true;
                sink(Input::Ready);
            }
            // Its last words but for the one below; it powers off by itself.
            GuestMessage::BootFailed { stage, message } => {
                return Input::GuestBootFailed {
                    reason: format!(
                        "the guest could not {}: {}",
                        harmless(&stage, 200),
                        harmless(&message, 2_000)
                    ),
                };
            }
            // Once ahead of it, once when everything is done: each gets it some time.
            GuestMessage::GoingDown { .. } if going_down == 2 => {
                return Input::Violation {
                    detail: "it announced its end too often".to_owned(),
                };
            }
            GuestMessage::GoingDown { requested, clean } => {
                going_down += 1;
                sink(Input::GoingDown { requested, clean });
            }
        }
    }
}

fn read(reader: &mut FrameReader<UnixStream>) -> Result<Option<GuestMessage>, Input> {
    use microagent_protocol::FrameError;
    let frame = match reader.read() {
        Ok(Some(frame)) => frame,
        Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => return Ok(None),
        Err(error) => {
            return Err(Input::Violation {
                detail: harmless(&error.to_string(), 500),
            });
        }
    };
    frame
        .expect_json(FrameKind::Control, "a control message")
        .map(Some)
        .map_err(|error| Input::Violation {
            detail: harmless(&error.to_string(), 500),
        })
}
