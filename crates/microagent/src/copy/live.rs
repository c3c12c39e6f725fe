//! Copies through a guest's agent, relayed by its supervisor.

use std::{
    io::{self, BufRead, Write},
    net::Shutdown,
    thread,
};

use microagent_host::socket::LocalStream;
use microagent_protocol::{
    CopyEnd, CopyIn, CopyOut, CopyReport, FrameKind, FrameReader,
    frame::write_frame,
    stream::{DataReader, DataWriter},
    supervisor::{Command, ErrorReport},
};

use crate::{
    error::{Error, Result},
    supervisor::client::Control,
};

/// Ends a source from outside.
#[derive(Debug, Default)]
pub(super) struct Canceller(Option<LocalStream>);

impl Canceller {
    pub(super) fn cancel(&self) {
        if let Some(stream) = &self.0 {
            hang_up(stream);
        }
    }
}

fn hang_up(stream: &LocalStream) {
    // One that is closed already is as good.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A session that packs something of the guest.
#[derive(Debug)]
pub(crate) struct LiveSource {
    subject: String,
    stream: LocalStream,
}

impl LiveSource {
    pub(super) fn open(control: &Control, request: CopyOut) -> Result<Self> {
        Ok(Self {
            subject: control.subject().to_owned(),
            stream: control.copy(Command::CopyOut(request))?,
        })
    }

    pub(super) fn canceller(&self) -> Canceller {
        // Without a handle it ends when the guest says more.
        Canceller(self.stream.try_clone().ok())
    }

    pub(super) fn produce(self, output: &mut impl Write) -> Result<CopyReport> {
        let frames = FrameReader::new(self.stream);
        let mut input = DataReader::new(frames, FrameKind::Stdout, FrameKind::Exit);
        loop {
            let bytes = match input.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) => return Err(lost(&self.subject, &error)),
            };
            if bytes.is_empty() {
                break;
            }
            let count = bytes.len();
            output
                .write_all(bytes)
                .map_err(microagent_files::CopyError::Output)?;
            input.consume(count);
        }
        let (end, _) = input
            .into_end()
            .map_err(|error| lost(&self.subject, &error))?;
        ended(&self.subject, &end)
    }
}

/// A session that lands something in the guest.
#[derive(Debug)]
pub(crate) struct LiveTarget {
    subject: String,
    stream: LocalStream,
}

impl LiveTarget {
    pub(super) fn open(control: &Control, request: CopyIn) -> Result<Self> {
        Ok(Self {
            subject: control.subject().to_owned(),
            stream: control.copy(Command::CopyIn(request))?,
        })
    }

    pub(super) fn consume(self, mut input: impl BufRead) -> Result<CopyReport> {
        let failed = |error: io::Error| lost(&self.subject, &error);
        let mut listening = self.stream.try_clone().map_err(failed)?;
        // The agent may have the last word before it has heard all of it.
        let listener = thread::spawn(move || {
            let end = FrameReader::new(&mut listening)
                .require()
                .map(|frame| (frame.kind, frame.payload.to_vec()));
            hang_up(&listening);
            end
        });
        let sent = send(&self.stream, &mut input);
        if let Err(Interrupted::Input(_)) = sent {
            // It must not look as if it had ended.
            hang_up(&self.stream);
        }
        let end = listener
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the listening thread panicked").into()));
        match (sent, end) {
            (Err(Interrupted::Input(error)), _) => Err(Error::Io {
                doing: "read",
                path: "the stream".into(),
                source: error,
            }),
            (_, Ok((FrameKind::Exit, end))) => ended(&self.subject, &end),
            (_, Ok((kind, _))) => {
                let error = io::Error::other(format!("a {kind:?} frame came instead of its end"));
                Err(lost(&self.subject, &error))
            }
            (_, Err(error)) => Err(lost(&self.subject, &io::Error::other(error))),
        }
    }
}

enum Interrupted {
    Input(io::Error),
    Output,
}

fn send(stream: &LocalStream, input: &mut impl BufRead) -> Result<(), Interrupted> {
    let mut output = DataWriter::new(stream, FrameKind::Stdin);
    loop {
        let bytes = input.fill_buf().map_err(Interrupted::Input)?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len();
        output.write_all(bytes).map_err(|_| Interrupted::Output)?;
        input.consume(count);
    }
    output.finish().map_err(|_| Interrupted::Output)?;
    write_frame(&mut &*stream, FrameKind::StdinEof, b"").map_err(|_| Interrupted::Output)
}

fn lost(subject: &str, error: &io::Error) -> Error {
    Error::CopyLost {
        workspace: subject.to_owned(),
        reason: error.to_string(),
    }
}

/// What the agent said in the end.
fn ended(subject: &str, end: &[u8]) -> Result<CopyReport> {
    match serde_json::from_slice(end) {
        Ok(CopyEnd::Done(report)) => Ok(report),
        Ok(CopyEnd::Failed { kind, message }) => Err(Error::Supervisor(Box::new(
            ErrorReport::new(kind, format!("In {subject}: {message}.")),
        ))),
        Err(error) => Err(lost(subject, &io::Error::other(error))),
    }
}
