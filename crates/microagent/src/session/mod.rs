//! One process in the guest, seen from outside: its streams go through, its end is reported.

mod output;

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread,
};

use microagent_host::socket::LocalStream;
use microagent_protocol::{
    FrameError, FrameKind, FrameReader, LineReport, TtySize,
    exec::ExitReport,
    frame::{self, STDIN_WINDOW},
};

use self::output::Output;
use crate::{
    error::{Error, Result},
    run::Happening,
    supervisor::client::{Begun, Opening},
};

/// Input is read in pieces of this size.
const STDIN_CHUNK: usize = 32 * 1024;

/// An output stream that a session's thread fills and the run reads in the end.
pub(crate) type SharedOutput = Arc<Mutex<Output>>;

/// Where a session's output goes.
#[derive(Clone)]
pub(crate) struct Sinks {
    pub(crate) stdout: SharedOutput,
    pub(crate) stderr: SharedOutput,
    /// Whether it is the command's own output, which is kept for the result.
    pub(crate) own: bool,
}

impl Sinks {
    /// Hands output on to these writers, and keeps the first `limit` bytes of each.
    pub(crate) fn new(
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        limit: u32,
    ) -> Self {
        let shared = |writer| Arc::new(Mutex::new(Output::new(writer, limit)));
        Self {
            stdout: shared(stdout),
            stderr: shared(stderr),
            own: true,
        }
    }

    /// Hands both streams on to one writer; nothing of it is kept.
    pub(crate) fn together(output: Box<dyn Write + Send>) -> Self {
        let output = Arc::new(Mutex::new(Output::new(output, 0)));
        Self {
            stdout: Arc::clone(&output),
            stderr: output,
            own: false,
        }
    }
}

/// What may be done with a session.
pub(crate) struct Session {
    stream: Arc<Mutex<LocalStream>>,
    credit: Arc<Credit>,
}

impl Session {
    /// Opens a session in threads of its own, which tell `sender` how it goes.
    pub(crate) fn spawn(
        mut opening: Opening,
        stdin: Option<Box<dyn Read + Send>>,
        sinks: Sinks,
        sender: Sender<Happening>,
    ) -> Result<Self> {
        let copy = opening
            .stream
            .try_clone()
            .map_err(|error| Error::connection("the session", &error.into()))?;
        // Before there is a thread: making one takes a while, in which the guest can be at work.
        opening.ask();
        let stream = Arc::new(Mutex::new(copy));
        let credit = Arc::new(Credit::default());
        let session = Self {
            stream: Arc::clone(&stream),
            credit: Arc::clone(&credit),
        };
        thread::spawn(move || {
            let ended = opening.start().and_then(|begun| {
                let (reader, shell) = match begun {
                    Begun::Failed(status) => {
                        let exit = ExitReport {
                            status,
                            oom_kills: 0,
                        };
                        return Ok(LineReport { exit, shell: None });
                    }
                    Begun::Process(reader) => (reader, None),
                    Begun::Line(reader, shell) => (reader, Some(shell)),
                    Begun::Console(reader) => {
                        credit.lift();
                        (reader, None)
                    }
                };
                tell(&sender, Happening::SessionStarted(shell));
                if let Some(stdin) = stdin {
                    let credit = Arc::clone(&credit);
                    thread::spawn(move || send_stdin(stdin, &stream, &credit));
                }
                receive(reader, &sinks, &credit, &sender)
                    .map_err(|error| Error::connection("the session", &error))
            });
            credit.close();
            tell(&sender, Happening::SessionEnded(ended));
        });
        Ok(session)
    }

    /// Sends a signal to the process's group.
    pub(crate) fn signal(&self, signal: u8) {
        self.send(FrameKind::Signal, &[signal]);
    }

    /// Tells the process's terminal its size.
    pub(crate) fn resize(&self, size: TtySize) {
        self.send(FrameKind::Resize, &size.to_bytes());
    }

    fn send(&self, kind: FrameKind, payload: &[u8]) {
        if let Err(error) = frame::write_frame(&mut *lock(&self.stream), kind, payload) {
            // The session's reader reports the end of the session; there is nothing to signal then.
            tracing::debug!("{kind:?} was not sent: {error}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.credit.close();
        // Closed by the other side already, as often as not.
        let _ = lock(&self.stream).shutdown(Shutdown::Both);
    }
}

fn tell(sender: &Sender<Happening>, happening: Happening) {
    // Nobody listens any more when the run was given up.
    let _ = sender.send(happening);
}

/// A poisoned lock only means that another thread panicked between two whole frames.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(
    stream: LocalStream,
    sinks: &Sinks,
    credit: &Credit,
    sender: &Sender<Happening>,
) -> Result<LineReport, FrameError> {
    let mut reader = FrameReader::new(stream);
    loop {
        let frame = reader.require()?;
        let output = match frame.kind {
            FrameKind::Stdout => &sinks.stdout,
            FrameKind::Stderr => &sinks.stderr,
            FrameKind::StdinCredit => {
                credit.add(frame.as_u32().unwrap_or(0));
                continue;
            }
            FrameKind::Exit => return frame.json(),
            got => {
                return Err(FrameError::Unexpected {
                    got,
                    wanted: "output or an exit",
                });
            }
        };
        let mut output = lock(output);
        let written = if sinks.own {
            output.take(frame.payload)
        } else {
            output.pass(frame.payload)
        };
        if let Err(error) = written {
            tell(sender, Happening::OutputFailed(error));
        }
    }
}

fn send_stdin(mut stdin: Box<dyn Read + Send>, stream: &Mutex<LocalStream>, credit: &Credit) {
    let mut chunk = vec![0_u8; STDIN_CHUNK];
    loop {
        let count = match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // A terminal that went away reads as EIO: to the command that is the end of input.
                tracing::debug!("standard input ended: {error}");
                break;
            }
        };
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            let Some(granted) = credit.take(rest.len()) else {
                return;
            };
            let (now, later) = rest.split_at(granted);
            if frame::write_frame(&mut *lock(stream), FrameKind::Stdin, now).is_err() {
                return; // The session is over.
            }
            rest = later;
        }
    }
    if let Err(error) = frame::write_frame(&mut *lock(stream), FrameKind::StdinEof, &[]) {
        tracing::debug!("the end of input was not sent: {error}");
    }
}

/// How many stdin bytes may still be sent.
struct Credit {
    left: Mutex<Left>,
    changed: Condvar,
}

enum Left {
    /// So much.
    Bytes(u32),
    /// The other side takes what it can and says nothing.
    Everything,
    /// The session is over.
    Closed,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            left: Mutex::new(Left::Bytes(STDIN_WINDOW)),
            changed: Condvar::new(),
        }
    }
}

impl Credit {
    /// Up to `wanted`, as soon as there is any; `None` once the session is over.
    fn take(&self, wanted: usize) -> Option<usize> {
        let mut left = lock(&self.left);
        loop {
            match &mut *left {
                Left::Closed => return None,
                Left::Everything => return Some(wanted),
                Left::Bytes(0) => {
                    left = self
                        .changed
                        .wait(left)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Left::Bytes(credit) => {
                    let granted = u32::try_from(wanted).unwrap_or(u32::MAX).min(*credit);
                    *credit -= granted;
                    return Some(granted as usize);
                }
            }
        }
    }

    /// A guest that grants more than the window gains nothing by it but its own memory filled.
    fn add(&self, bytes: u32) {
        if let Left::Bytes(credit) = &mut *lock(&self.left) {
            *credit = credit.saturating_add(bytes).min(STDIN_WINDOW);
        }
        self.changed.notify_all();
    }

    /// There is no limit here.
    fn lift(&self) {
        *lock(&self.left) = Left::Everything;
        self.changed.notify_all();
    }

    fn close(&self) {
        *lock(&self.left) = Left::Closed;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_granted_and_closed() {
        let credit = Arc::new(Credit::default());
        assert_eq!(credit.take(10), Some(10));
        assert_eq!(credit.take(usize::MAX), Some(STDIN_WINDOW as usize - 10));
        let waiter = {
            let credit = Arc::clone(&credit);
            thread::spawn(move || (credit.take(5), credit.take(5)))
        };
        credit.add(5);
        credit.close();
        let (first, second) = waiter.join().unwrap();
        assert!(first == Some(5) || first.is_none());
        assert_eq!(second, None);
    }

    #[test]
    fn more_input_than_the_window_flows_as_credit_comes() {
        let (ours, theirs) = LocalStream::pair().unwrap();
        let input: Vec<u8> = (0..STDIN_WINDOW * 3 + 7).map(|n| n as u8).collect();
        let credit = Arc::new(Credit::default());
        let sender = {
            let (input, credit) = (io::Cursor::new(input.clone()), Arc::clone(&credit));
            thread::spawn(move || send_stdin(Box::new(input), &Mutex::new(ours), &credit))
        };
        let mut got = Vec::new();
        let mut reader = FrameReader::new(theirs);
        loop {
            let frame = reader.require().unwrap();
            if frame.kind == FrameKind::StdinEof {
                break;
            }
            assert_eq!(frame.kind, FrameKind::Stdin);
            got.extend_from_slice(frame.payload);
            credit.add(frame.payload.len() as u32);
        }
        sender.join().unwrap();
        assert!(got == input);
    }
}
