//! The control connection: first words, configuration, and what the host asks
//! of the whole machine. It knows nothing of sessions.

use std::{
    fs::File,
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::{
    FrameError, FrameKind, FrameReader,
    frame::write_json,
    guest::{BootConfig, GUEST_PROTOCOL, GuestMessage, HELLO_PORT, HostMessage},
};
use rustix::net::{Shutdown, shutdown};

use crate::{
    clock, console,
    error::{Context, Error},
    vsock,
};

/// How long the host may take to listen.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the host may take to read a message.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// How long the host may take to acknowledge the last message by closing.
const FAREWELL_LIMIT: Duration = Duration::from_millis(100);

/// What happens to the machine as a whole.
#[derive(Debug)]
pub(crate) enum Event {
    /// The host's first answer.
    Configure(Box<BootConfig>),
    /// The host wants it to end.
    Shutdown {
        /// How long the workload may take.
        grace: Duration,
    },
    /// The host is not there any more, or never was.
    HostGone(Error),
    /// Somebody inside asked PID 1 by a signal to end it.
    PowerSignal,
}

/// The connection, once it is up. One per agent.
static CONNECTION: OnceLock<Mutex<File>> = OnceLock::new();

/// Starts to connect; everything the host says arrives at `events`.
pub(crate) fn start(kernel_ms: u64, events: Sender<Event>) -> Result<(), Error> {
    thread::Builder::new()
        .name("control".to_owned())
        .stack_size(crate::THREAD_STACK)
        .spawn(move || {
            let end = converse(kernel_ms, &events)
                .err()
                .unwrap_or(Error::HostGone);
            // Without a listener the agent is powering off already.
            let _ = events.send(Event::HostGone(end));
        })
        .context("start the control thread")?;
    Ok(())
}

/// The first event, which must be the configuration.
pub(crate) fn configuration(events: &Receiver<Event>) -> Result<Box<BootConfig>, Error> {
    loop {
        match events.recv() {
            Ok(Event::Configure(config)) => return Ok(config),
            Ok(Event::HostGone(error)) => return Err(error),
            Ok(Event::Shutdown { .. }) | Err(_) => return Err(Error::HostGone),
            // Nothing runs yet that could mean it.
            Ok(Event::PowerSignal) => {}
        }
    }
}

/// Tells the host.
pub(crate) fn send(message: &GuestMessage) -> Result<(), Error> {
    let connection = CONNECTION.get().ok_or(Error::HostGone)?;
    let mut stream = connection.lock().unwrap_or_else(PoisonError::into_inner);
    write_json(&mut *stream, FrameKind::Control, message)?;
    Ok(())
}

/// Tells the host the last thing it will hear, and waits shortly until it has
/// read it: what still is in a queue when the machine ends is lost.
pub(crate) fn send_last(message: &GuestMessage) {
    if send(message).is_err() {
        return;
    }
    let Some(connection) = CONNECTION.get() else {
        return;
    };
    let stream = connection.lock().unwrap_or_else(PoisonError::into_inner);
    if shutdown(&*stream, Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + FAREWELL_LIMIT;
    while !HOST_CLOSED.load(std::sync::atomic::Ordering::Acquire) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Set by the reading side at the end of the stream.
static HOST_CLOSED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn converse(kernel_ms: u64, events: &Sender<Event>) -> Result<(), Error> {
    let stream = connect()?;
    let writer = stream.try_clone().context("share the control connection")?;
    // Nobody else sets it, so it is empty.
    let _ = CONNECTION.set(Mutex::new(writer));
    send(&GuestMessage::Hello {
        protocol: GUEST_PROTOCOL,
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        kernel_ms,
    })?;
    let mut reader = FrameReader::new(stream);
    let result = listen(&mut reader, events);
    HOST_CLOSED.store(true, std::sync::atomic::Ordering::Release);
    result
}

fn listen(reader: &mut FrameReader<File>, events: &Sender<Event>) -> Result<(), Error> {
    loop {
        let frame = match reader.read() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(Error::HostGone),
            // An end in the middle of things, such as a host that was killed.
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(Error::HostGone);
            }
            Err(error) => return Err(error.into()),
        };
        let event = match frame.expect_json(FrameKind::Control, "a control message")? {
            HostMessage::Configure(config) => Event::Configure(config),
            HostMessage::Shutdown { grace_ms } => Event::Shutdown {
                grace: Duration::from_millis(grace_ms),
            },
            HostMessage::SetClock { unix_nanos } => {
                if let Err(error) = clock::set(unix_nanos) {
                    console::say(format_args!("{error}"));
                }
                continue;
            }
        };
        if events.send(event).is_err() {
            return Ok(());
        }
    }
}

fn connect() -> Result<File, Error> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match vsock::connect(HELLO_PORT) {
            Ok(stream) => {
                vsock::set_timeouts(&stream, None, Some(WRITE_LIMIT))
                    .context("bound the control connection")?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context(format_args!(
                    "connect to the host's vsock port {HELLO_PORT}"
                ));
            }
            // The device may still be on its way, or the host not be listening yet.
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
