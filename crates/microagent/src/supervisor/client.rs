//! The streaming form: connections to the control socket of a supervisor that runs.

use std::{
    io::Write as _,
    net::Shutdown,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_host::{process::ProcessHandle, socket::LocalStream};
use microagent_protocol::{
    FrameError, FrameKind, FrameReader, ShellOrigin,
    exec::{ExecRequest, ExitStatus},
    frame,
    supervisor::{Answer, Command, Event, Launched, Request, Response, Status},
};

use crate::error::{Error, Result};

/// What a connection that is new takes at once, whether or not anybody reads.
const AT_ONCE: usize = 32 * 1024;

/// How long an answer to a control command may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The way to a machine that runs, whoever launched it.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    subject: String,
    socket: PathBuf,
}

impl Control {
    /// Of the workspace `subject`, whose supervisor listens at `socket`.
    pub(crate) fn new(subject: &str, socket: PathBuf) -> Self {
        Self {
            subject: subject.to_owned(),
            socket,
        }
    }

    /// Asks one thing on a connection of its own. `limit` is for the answer.
    pub(crate) fn ask(&self, command: Command, limit: Duration) -> Result<Answer> {
        let mut stream = connect(&self.subject, &self.socket)?;
        request(&self.subject, &mut stream, command, Some(limit))
    }

    /// Asks what is answered with the machine's status.
    pub(crate) fn status(&self, command: Command, limit: Duration) -> Result<Status> {
        match self.ask(command, limit)? {
            Answer::Status(status) => Ok(*status),
            _ => Err(unexpected(&self.subject)),
        }
    }

    /// The events of this boot, those that happened already first.
    pub(crate) fn subscribe(&self) -> Result<Events> {
        self.follow(false)
    }

    /// The same as the owner: the machine lives only as long as they are listened to.
    pub(crate) fn own(&self) -> Result<Events> {
        self.follow(true)
    }

    fn follow(&self, owner: bool) -> Result<Events> {
        let mut stream = connect(&self.subject, &self.socket)?;
        let command = Command::Subscribe { owner };
        match request(&self.subject, &mut stream, command, Some(ANSWER_LIMIT))? {
            Answer::Subscribed => Ok(Events(FrameReader::new(stream))),
            _ => Err(unexpected(&self.subject)),
        }
    }

    /// A connection for several questions.
    pub(crate) fn conversation(&self) -> Result<Conversation> {
        Ok(Conversation {
            subject: self.subject.clone(),
            stream: connect(&self.subject, &self.socket)?,
        })
    }

    /// Whose machine it is.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// A connection that has become a copy's session. Waits until the guest is ready.
    pub(crate) fn copy(&self, command: Command) -> Result<LocalStream> {
        let mut stream = connect(&self.subject, &self.socket)?;
        match request(&self.subject, &mut stream, command, None)? {
            Answer::Copying => Ok(stream),
            _ => Err(unexpected(&self.subject)),
        }
    }

    /// A session, to be opened once the guest is ready.
    pub(crate) fn open(&self, command: Command) -> Result<Opening> {
        Ok(Opening {
            subject: self.subject.clone(),
            stream: connect(&self.subject, &self.socket)?,
            question: Question::Due(command),
        })
    }
}

/// A connection that takes one question after the other.
#[derive(Debug)]
pub(crate) struct Conversation {
    subject: String,
    stream: LocalStream,
}

impl Conversation {
    /// Asks one thing. `limit` is for the answer.
    pub(crate) fn ask(&mut self, command: Command, limit: Duration) -> Result<Answer> {
        request(&self.subject, &mut self.stream, command, Some(limit))
    }

    /// The workspace.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }
}

/// One machine's supervisor, owned: when this value goes, so does the machine.
#[derive(Debug)]
pub(crate) struct Supervisor {
    subject: String,
    socket: PathBuf,
    owner: LocalStream,
    process: Option<ProcessHandle>,
}

/// The events of a machine, oldest first, to its end.
pub(crate) struct Events(FrameReader<LocalStream>);

impl Supervisor {
    /// Becomes the owner of a machine that was just launched.
    pub(crate) fn own(subject: &str, launched: &Launched) -> Result<(Self, Events)> {
        // Without a handle (it may have ended already) its end shows only on the connection.
        let process = ProcessHandle::open(launched.supervisor.pid).ok();
        let mut owner = connect(subject, &launched.socket)?;
        let command = Command::Subscribe { owner: true };
        let answer = request(subject, &mut owner, command, Some(ANSWER_LIMIT))?;
        if !matches!(answer, Answer::Subscribed) {
            return Err(unexpected(subject));
        }
        let copy = owner.try_clone().map_err(|source| Error::Io {
            doing: "share the connection to",
            path: launched.socket.clone(),
            source,
        })?;
        let supervisor = Self {
            subject: subject.to_owned(),
            socket: launched.socket.clone(),
            owner,
            process,
        };
        Ok((supervisor, Events(FrameReader::new(copy))))
    }

    /// The workspace whose machine it has.
    pub(crate) fn name(&self) -> &str {
        &self.subject
    }

    /// The way to it for whoever does not own it.
    pub(crate) fn control(&self) -> Control {
        Control::new(&self.subject, self.socket.clone())
    }

    /// Starts a process in the guest, once the guest is ready.
    pub(crate) fn exec(&self, exec: ExecRequest) -> Result<Opening> {
        self.control().open(Command::Exec(exec))
    }

    /// Ends the machine at once. That it is gone already is fine.
    pub(crate) fn kill(&self) {
        let killed = connect(&self.subject, &self.socket).and_then(|mut stream| {
            request(
                &self.subject,
                &mut stream,
                Command::Kill,
                Some(ANSWER_LIMIT),
            )
        });
        if let Err(error) = killed {
            tracing::debug!("kill {}: {error}", self.subject);
            self.let_go();
        }
    }

    /// Closes the owner's connection, which ends the machine.
    pub(crate) fn let_go(&self) {
        // A connection that is closed already is what is wanted.
        let _ = self.owner.shutdown(Shutdown::Both);
    }

    /// Waits for the supervisor's process to end; false if it did not in time.
    pub(crate) fn wait_gone(&self, limit: Duration) -> bool {
        match &self.process {
            None => true,
            Some(process) => process.ended_by(Instant::now() + limit).unwrap_or(false),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.let_go();
        if !self.wait_gone(Duration::from_secs(10)) {
            tracing::warn!("the supervisor of {} has not ended yet", self.subject);
        }
    }
}

impl Events {
    /// The next event, `None` when the supervisor is gone.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, FrameError> {
        match self.0.read()? {
            None => Ok(None),
            Some(frame) => frame.expect_json(FrameKind::Event, "an event").map(Some),
        }
    }
}

/// How a session began.
pub(crate) enum Begun {
    /// A process runs; the stream is its session.
    Process(LocalStream),
    /// A line runs in this shell; the stream is its session.
    Line(LocalStream, ShellOrigin),
    /// The stream is the serial console.
    Console(LocalStream),
    /// The process or the line never ran.
    Failed(ExitStatus),
}

/// A session about to be opened.
pub(crate) struct Opening {
    subject: String,
    pub(crate) stream: LocalStream,
    question: Question,
}

/// What a session is opened by.
enum Question {
    /// It is still to be asked.
    Due(Command),
    /// It was, or could not be.
    Asked(Result<(), FrameError>),
}

impl Opening {
    /// Asks for it, if that keeps nobody waiting; what comes of it is [`Self::start`]'s to say.
    pub(crate) fn ask(&mut self) {
        if let Question::Due(command) = &self.question {
            let mut bytes = Vec::new();
            let request = Request::new(command.clone());
            let asked = match frame::write_json(&mut bytes, FrameKind::Request, &request) {
                Ok(()) if bytes.len() > AT_ONCE => return,
                Ok(()) => self.stream.write_all(&bytes).map_err(FrameError::from),
                Err(error) => Err(error),
            };
            self.question = Question::Asked(asked);
        }
    }

    /// Waits until it has begun, or cannot.
    pub(crate) fn start(mut self) -> Result<Begun> {
        match self.question {
            Question::Due(command) => ask(&self.subject, &mut self.stream, command)?,
            Question::Asked(asked) => {
                asked.map_err(|error| Error::connection(&self.subject, &error))?;
            }
        }
        Ok(match answer(&self.subject, &mut self.stream, None)? {
            Answer::Started { .. } => Begun::Process(self.stream),
            Answer::Line { shell, .. } => Begun::Line(self.stream, shell),
            Answer::Attached => Begun::Console(self.stream),
            Answer::FailedToStart { reason, message } => {
                Begun::Failed(ExitStatus::FailedToStart { reason, message })
            }
            _ => return Err(unexpected(&self.subject)),
        })
    }
}

/// An answer that is none.
pub(crate) fn unexpected(subject: &str) -> Error {
    Error::SupervisorFailed {
        subject: subject.to_owned(),
        reason: "it gave an answer to another question".to_owned(),
        log: None,
    }
}

fn connect(subject: &str, socket: &Path) -> Result<LocalStream> {
    LocalStream::connect(socket).map_err(|source| Error::SupervisorFailed {
        subject: subject.to_owned(),
        reason: format!("its socket {} does not answer: {source}", socket.display()),
        log: None,
    })
}

fn request(
    subject: &str,
    stream: &mut LocalStream,
    command: Command,
    limit: Option<Duration>,
) -> Result<Answer> {
    ask(subject, stream, command)?;
    answer(subject, stream, limit)
}

fn ask(subject: &str, stream: &mut LocalStream, command: Command) -> Result<()> {
    frame::write_json(stream, FrameKind::Request, &Request::new(command))
        .map_err(|error| Error::connection(subject, &error))
}

fn answer(subject: &str, stream: &mut LocalStream, limit: Option<Duration>) -> Result<Answer> {
    let lost = |error: FrameError| Error::connection(subject, &error);
    stream
        .set_read_timeout(limit)
        .map_err(|error| lost(error.into()))?;
    let mut reader = FrameReader::new(&mut *stream);
    let response: Response = reader
        .require()
        .and_then(|frame| frame.expect_json(FrameKind::Response, "a response"))
        .map_err(lost)?;
    stream
        .set_read_timeout(None)
        .map_err(|error| lost(error.into()))?;
    response
        .into_result()
        .map_err(|report| Error::Supervisor(Box::new(report)))
}
