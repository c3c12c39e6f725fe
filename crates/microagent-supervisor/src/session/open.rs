//! Opening a session: reach the agent, ask, and read its answer.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use microagent_protocol::{
    ExecRequest, ExitStatus, FrameKind, FrameReader, ShellLine, ShellOrigin, StartFailure,
    frame::write_json,
    guest::{AGENT_PORT, SessionReply, SessionRequest},
    supervisor::{ErrorKind, ErrorReport},
};

use super::Seat;
use crate::text::harmless;

/// How long the guest may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// How long the guest may take to start a process.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A limit as long as this is none.
const LONGEST_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What became of an opening.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It runs.
    Started {
        pid: u32,
        guest: FrameReader<UnixStream>,
    },
    /// It never ran.
    Failed(ExitStatus),
}

/// Asks the guest to run `request`.
pub(crate) fn open(seat: &Seat, vsock: &Path, request: ExecRequest) -> Result<Opened, ErrorReport> {
    match ask(seat, vsock, &SessionRequest::Exec(request), START_LIMIT)? {
        Asked::Started { pid, guest } => Ok(Opened::Started { pid, guest }),
        Asked::Failed(status) => Ok(Opened::Failed(status)),
        Asked::Line { .. } | Asked::Opened(_) => Err(wrong_reply()),
    }
}

/// Asks the guest for a copy; gives its side of the session, or why it does not copy.
pub(crate) fn open_copy(
    seat: &Seat,
    vsock: &Path,
    request: &SessionRequest,
) -> Result<Result<FrameReader<UnixStream>, String>, ErrorReport> {
    match ask(seat, vsock, request, START_LIMIT)? {
        Asked::Opened(guest) => Ok(Ok(guest)),
        Asked::Failed(ExitStatus::FailedToStart { message, .. }) => Ok(Err(message)),
        Asked::Failed(_) | Asked::Started { .. } | Asked::Line { .. } => Err(wrong_reply()),
    }
}

/// What became of a line's opening.
#[derive(Debug)]
pub(crate) enum LineOpened {
    /// Its turn has come.
    Running {
        pid: u32,
        shell: ShellOrigin,
        guest: FrameReader<UnixStream>,
    },
    /// It never ran.
    Failed {
        reason: StartFailure,
        message: String,
    },
}

/// Asks the guest to run `line` in its shell.
pub(crate) fn open_line(
    seat: &Seat,
    vsock: &Path,
    line: ShellLine,
) -> Result<LineOpened, ErrorReport> {
    // Without a limit of its own it waits for as long as the lines before it take.
    let limit = line
        .turn_limit_ms
        .map_or(Duration::MAX, Duration::from_millis)
        .saturating_add(START_LIMIT);
    match ask(seat, vsock, &SessionRequest::Shell(line), limit)? {
        Asked::Line { pid, shell, guest } => Ok(LineOpened::Running { pid, shell, guest }),
        Asked::Failed(ExitStatus::FailedToStart { reason, message }) => {
            Ok(LineOpened::Failed { reason, message })
        }
        Asked::Failed(_) | Asked::Started { .. } | Asked::Opened(_) => Err(wrong_reply()),
    }
}

fn wrong_reply() -> ErrorReport {
    ErrorReport::new(
        ErrorKind::Internal,
        "the guest answered a request that was not made",
    )
}

/// The guest's answer to a request.
enum Asked {
    Started {
        pid: u32,
        guest: FrameReader<UnixStream>,
    },
    Line {
        pid: u32,
        shell: ShellOrigin,
        guest: FrameReader<UnixStream>,
    },
    /// Bytes or frames follow.
    Opened(FrameReader<UnixStream>),
    Failed(ExitStatus),
}

fn ask(
    seat: &Seat,
    vsock: &Path,
    request: &SessionRequest,
    limit: Duration,
) -> Result<Asked, ErrorReport> {
    let failed = |what: &str| {
        let what = format!("the guest {what}");
        move |error: &dyn std::fmt::Display| {
            ErrorReport::new(
                ErrorKind::Transient,
                format!("{what}: {}", harmless(&error.to_string(), 500)),
            )
        }
    };
    let unreachable = failed("could not be reached");
    let mut reader = match seat.sessions.kept() {
        Some(kept) => {
            let copy = kept.get_ref().try_clone();
            seat.hold(copy.map_err(|error| unreachable(&error))?)?;
            kept
        }
        None => FrameReader::new(connect(seat, vsock).map_err(|error| match error {
            Connect::Closed(report) => report,
            Connect::Io(error) => unreachable(&error),
        })?),
    };
    let prepare = |reader: &FrameReader<UnixStream>, limit| {
        reader
            .get_ref()
            .set_read_timeout(limit)
            .and_then(|()| reader.get_ref().set_write_timeout(limit))
    };
    // The system counts in seconds of 64 bits: what is beyond that is no limit.
    let limit = Some(limit).filter(|limit| *limit < LONGEST_LIMIT);
    prepare(&reader, limit).map_err(|error| unreachable(&error))?;
    let silent = failed("did not answer the request to run a process");
    write_json(&mut reader.get_ref(), FrameKind::Header, request)
        .map_err(|error| silent(&error))?;
    let reply = reader
        .require()
        .and_then(|frame| frame.expect_json(FrameKind::Header, "a reply"))
        .map_err(|error| silent(&error))?;
    // A process may be quiet, and a client slow, for as long as they like.
    prepare(&reader, None).map_err(|error| unreachable(&error))?;
    Ok(match reply {
        SessionReply::Started { pid } => Asked::Started { pid, guest: reader },
        SessionReply::Line { pid, shell } => Asked::Line {
            pid,
            shell,
            guest: reader,
        },
        SessionReply::Opened => Asked::Opened(reader),
        SessionReply::Failed { reason, message } => Asked::Failed(ExitStatus::FailedToStart {
            reason,
            message: harmless(&message, 2_000),
        }),
    })
}

enum Connect {
    Closed(ErrorReport),
    Io(io::Error),
}

impl From<io::Error> for Connect {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The hybrid vsock's handshake.
fn connect(seat: &Seat, vsock: &Path) -> Result<UnixStream, Connect> {
    let mut stream = UnixStream::connect(vsock)?;
    seat.hold(stream.try_clone()?).map_err(Connect::Closed)?;
    stream.set_read_timeout(Some(CONNECT_LIMIT))?;
    stream.set_write_timeout(Some(CONNECT_LIMIT))?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    // Byte by byte: what follows the line is the guest's.
    let mut line = Vec::with_capacity(16);
    let mut byte = [0_u8; 1];
    while line.last() != Some(&b'\n') {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            Ok(_) => line.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if line.len() > 32 {
            break;
        }
    }
    if line.starts_with(b"OK ") && line.ends_with(b"\n") {
        Ok(stream)
    } else {
        Err(io::Error::other("the vsock device answered something else than OK").into())
    }
}
