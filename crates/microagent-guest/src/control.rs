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
    boot::identity,
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
    let mut configured = false;
    loop {
        let stream = connect()?;
        introduce(&stream, kernel_ms)?;
        match listen(&mut FrameReader::new(stream), &mut configured, events) {
            // Its transport was reset under it: the machine goes on from a snapshot. Whoever restored
            // it listens already, or never will.
            Err(Error::LinkReset) => {
                console::say(format_args!("the host's end was reset; hello again"));
            }
            ended => {
                HOST_CLOSED.store(true, std::sync::atomic::Ordering::Release);
                return ended;
            }
        }
    }
}

/// Takes `stream` as the control connection and says hello on it.
fn introduce(stream: &File, kernel_ms: u64) -> Result<(), Error> {
    let writer = stream.try_clone().context("share the control connection")?;
    if let Err(writer) = CONNECTION.set(Mutex::new(writer)) {
        let writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = CONNECTION.get() {
            *connection.lock().unwrap_or_else(PoisonError::into_inner) = writer;
        }
    }
    send(&GuestMessage::Hello {
        protocol: GUEST_PROTOCOL,
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        kernel_ms,
    })
}

fn listen(
    reader: &mut FrameReader<impl io::Read>,
    configured: &mut bool,
    events: &Sender<Event>,
) -> Result<(), Error> {
    loop {
        let frame = match reader.read() {
            Ok(Some(frame)) => frame,
            // As when a host ends or is killed.
            Ok(None) => return Err(Error::HostGone),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(Error::LinkReset);
            }
            Err(error) => return Err(error.into()),
        };
        let event = match frame.expect_json(FrameKind::Control, "a control message")? {
            HostMessage::Configure(config) if *configured => {
                renew(&config);
                continue;
            }
            HostMessage::Configure(config) => {
                *configured = true;
                Event::Configure(config)
            }
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

/// What a machine that goes on from a snapshot needs of its configuration: the time it is now, and
/// randomness that no other machine from the same snapshot has. The rest it has already.
fn renew(config: &BootConfig) {
    let done = identity::seed(&config.entropy).and_then(|()| clock::set(config.unix_nanos));
    let uptime_ms = clock::uptime_ms();
    if let Err(error) = done.and_then(|()| send(&GuestMessage::Ready { uptime_ms })) {
        console::say(format_args!("{error}"));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What comes, and then the end it comes to.
    struct Host(io::Cursor<Vec<u8>>, Option<io::ErrorKind>);

    impl io::Read for Host {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match (self.0.read(buffer)?, self.1) {
                (0, Some(kind)) => Err(kind.into()),
                (count, _) => Ok(count),
            }
        }
    }

    #[test]
    fn a_reset_is_told_from_a_host_that_is_gone() {
        let mut said = Vec::new();
        let message = HostMessage::Shutdown { grace_ms: 7 };
        write_json(&mut said, FrameKind::Control, &message).unwrap();
        let (sender, events) = mpsc::channel();
        let hear = |end: Option<io::ErrorKind>| {
            let mut reader = FrameReader::new(Host(io::Cursor::new(said.clone()), end));
            listen(&mut reader, &mut false, &sender).unwrap_err()
        };
        assert!(matches!(hear(None), Error::HostGone));
        let reset = hear(Some(io::ErrorKind::ConnectionReset));
        assert!(matches!(reset, Error::LinkReset));
        for _ in 0..2 {
            let Ok(Event::Shutdown { grace }) = events.try_recv() else {
                panic!("what was said before the end was not heard");
            };
            assert_eq!(grace, Duration::from_millis(7));
        }
    }
}
