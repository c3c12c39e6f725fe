//! Where a run's streams go, who hears of its progress, and how it is steered from outside.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use microagent_protocol::TtySize;

use crate::{event::RunEvent, run::Happening};

/// Called with every step of a run, from any of its threads.
pub(crate) type EventSink = Arc<dyn Fn(RunEvent) + Send + Sync>;

/// The surroundings of one run: its streams, its listener and its steering wheel.
///
/// ```
/// use microagent::{RunEvent, RunIo};
///
/// let io = RunIo::captured().on_event(|event| {
///     if let RunEvent::Workspace { name } = event {
///         println!("workspace {name}");
///     }
/// });
/// let controller = io.controller(); // may go to another thread
/// # drop((io, controller));
/// ```
#[must_use]
pub struct RunIo {
    pub(crate) stdin: Option<Box<dyn Read + Send>>,
    pub(crate) stdout: Box<dyn Write + Send>,
    pub(crate) stderr: Box<dyn Write + Send>,
    pub(crate) events: EventSink,
    sender: Sender<Happening>,
    receiver: Receiver<Happening>,
}

impl RunIo {
    /// The command's output goes to these writers as it is produced; its input is `/dev/null`.
    pub fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self {
            stdin: None,
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            events: Arc::new(|_| {}),
            sender,
            receiver,
        }
    }

    /// The command's output goes only into the result, up to [`crate::Config::capture_limit`].
    pub fn captured() -> Self {
        Self::new(io::sink(), io::sink())
    }

    /// Streams this to the command's standard input, and then the end of it. The thread that
    /// reads it lives until a read returns, which may be after the run.
    pub fn stdin(mut self, stdin: impl Read + Send + 'static) -> Self {
        self.stdin = Some(Box::new(stdin));
        self
    }

    /// Tells `listener` of every step. It is called from several threads and should be quick.
    pub fn on_event(mut self, listener: impl Fn(RunEvent) + Send + Sync + 'static) -> Self {
        self.events = Arc::new(listener);
        self
    }

    /// A handle that steers the run, from any thread.
    #[must_use]
    pub fn controller(&self) -> RunController {
        RunController {
            sender: self.sender.clone(),
        }
    }

    /// Whether there is something to stream to standard input.
    pub(crate) fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    pub(crate) fn into_parts(self) -> Parts {
        let Self {
            stdin,
            stdout,
            stderr,
            events,
            sender,
            receiver,
        } = self;
        Parts {
            stdin,
            stdout,
            stderr,
            events,
            sender,
            receiver,
        }
    }
}

impl std::fmt::Debug for RunIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunIo")
            .field("stdin", &self.stdin.is_some())
            .finish_non_exhaustive()
    }
}

/// A [`RunIo`] taken apart.
pub(crate) struct Parts {
    pub(crate) stdin: Option<Box<dyn Read + Send>>,
    pub(crate) stdout: Box<dyn Write + Send>,
    pub(crate) stderr: Box<dyn Write + Send>,
    pub(crate) events: EventSink,
    pub(crate) sender: Sender<Happening>,
    pub(crate) receiver: Receiver<Happening>,
}

/// What a [`RunController`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Signal(u8),
    Resize(TtySize),
    Kill,
    Detach,
}

/// Steers a run, or a command in a running workspace, from outside. After it this does nothing.
#[derive(Clone, Debug)]
pub struct RunController {
    sender: Sender<Happening>,
}

impl RunController {
    /// Sends a Linux signal to the command; before the command runs it cancels everything. A
    /// line of the persistent shell is interrupted, whatever the signal.
    pub fn signal(&self, signal: u8) {
        self.send(Control::Signal(signal));
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, size: TtySize) {
        self.send(Control::Resize(size));
    }

    /// Ends a run's machine, or a command in a running workspace, at once.
    pub fn kill(&self) {
        self.send(Control::Kill);
    }

    /// Lets go of a command in a running workspace: it hears a hang-up, as from a terminal that
    /// was closed, and the workspace runs on. A run ends by it.
    pub fn detach(&self) {
        self.send(Control::Detach);
    }

    fn send(&self, control: Control) {
        // A run that is over has nobody who listens, and nothing to steer.
        let _ = self.sender.send(Happening::Control(control));
    }
}
