//! Connections that become one process of the guest.

use std::{
    io::{self, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc::channel},
};

use microagent_protocol::{
    ExecRequest, ExecRole, FrameKind, FrameReader,
    exec::{ExitReport, ExitStatus},
    frame::write_json,
    supervisor::{Answer, ErrorKind, ErrorReport, Response},
};

use super::{Hub, deliver, gone, respond};
use crate::{
    crew::lock,
    engine::Message,
    events::hang_up,
    lifecycle::Input,
    result::Capture,
    session::{self, Notice, Opened, Orphan, Outcome, Relay, Settled},
};

/// Waits until the guest takes sessions, and says where.
pub(super) fn when_ready(
    client: &FrameReader<UnixStream>,
    role: ExecRole,
    hub: &Hub,
) -> Result<PathBuf, ErrorReport> {
    let (reply, ticket) = channel();
    deliver(hub, Message::Exec { role, reply })?;
    let vsock = ticket.recv().map_err(|_| gone())??;
    // Nothing may be run for somebody who gave up waiting.
    if role != ExecRole::Workload && session::has_hung_up(client.get_ref()) {
        return Err(ErrorReport::new(
            ErrorKind::Transient,
            "The client was gone before the guest was ready.",
        ));
    }
    Ok(vsock)
}

/// Tells of a session from its beginning to its end at once.
fn tell_all(
    reader: &FrameReader<UnixStream>,
    id: &str,
    pid: u32,
    settled: Settled,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(256 + settled.output.len());
    let begun = Response::new(id, Ok(Answer::Started { pid }));
    write_json(&mut bytes, FrameKind::Response, &begun).map_err(io::Error::other)?;
    bytes.extend(settled.output);
    write_json(&mut bytes, FrameKind::Exit, &settled.report).map_err(io::Error::other)?;
    reader.get_ref().write_all(&bytes)?;
    hang_up(reader.get_ref(), Shutdown::Both);
    Ok(())
}

/// Runs a session on this connection; gives the connection back if none came of it.
pub(super) fn run(
    reader: FrameReader<UnixStream>,
    id: &str,
    request: ExecRequest,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let is_workload = request.role == ExecRole::Workload;
    let stdin = request.stdin;
    let seat = match hub.sessions.admit() {
        Ok(seat) => seat,
        Err(report) => {
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    let vsock = match when_ready(&reader, request.role, hub) {
        Ok(vsock) => vsock,
        Err(report) => {
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    let capture = is_workload.then(|| Arc::new(Mutex::new(Capture::new(hub.capture_limit))));
    let (pid, mut guest) = match session::open(&seat, &vsock, request) {
        Ok(Opened::Started { pid, guest }) => (pid, guest),
        Ok(Opened::Failed(status)) => {
            if let Some(capture) = &capture {
                lock(capture).exited(ExitReport {
                    status: status.clone(),
                    oom_kills: 0,
                });
                // An engine that is gone has recorded the end already.
                let _ = deliver(hub, Message::WorkloadFailed(Arc::clone(capture)));
            }
            let outcome = match status {
                ExitStatus::FailedToStart { reason, message } => {
                    Ok(Answer::FailedToStart { reason, message })
                }
                ExitStatus::Exited { .. } | ExitStatus::Signaled { .. } => Err(ErrorReport::new(
                    ErrorKind::Internal,
                    "a process that never ran has an exit status",
                )),
            };
            let told = respond(&reader, id, outcome);
            if is_workload {
                // As above.
                let _ = deliver(hub, Message::Happened(Input::WorkloadDelivered));
            }
            told?;
            return Ok(Some(reader));
        }
        Err(report) => {
            if is_workload {
                // As above.
                let _ = deliver(hub, Message::WorkloadAbandoned);
            }
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    if let Some(capture) = &capture {
        // As above.
        let _ = deliver(hub, Message::WorkloadStarted(Arc::clone(capture)));
    }
    // Who the machine lives for is the owner's connection's to say, and nobody else's.
    let orphan = if is_workload {
        Orphan::Detach
    } else {
        Orphan::End
    };
    if !is_workload && let Ok(Some(settled)) = session::settled(&mut guest) {
        // Ready for whatever the client asks next.
        hub.sessions.keep(guest);
        drop(seat);
        return tell_all(&reader, id, pid, settled).map(|()| None);
    }
    let told = respond(&reader, id, Ok(Answer::Started { pid }));
    if let Err(error) = told
        && orphan == Orphan::End
    {
        return Err(error);
    }
    // From here on a slow client slows its process down and is no error.
    reader.get_ref().set_write_timeout(None)?;
    let relay = Relay {
        client: reader,
        guest,
        orphan,
        stdin,
        capture,
        seat,
    };
    let outbox = hub.outbox.clone();
    relay.run(&hub.crew, move |notice| {
        let input = match notice {
            Notice::Exiting(report) if is_workload => Input::WorkloadEnded { report },
            Notice::Over(Outcome::Exited) if is_workload => Input::WorkloadDelivered,
            Notice::Over(Outcome::Lost) if is_workload => Input::WorkloadLost,
            Notice::Over(Outcome::Violation(detail)) => Input::Violation { detail },
            Notice::Exiting(_) | Notice::Over(_) => return,
        };
        // As above.
        let _ = outbox.send(Message::Happened(input));
    })?;
    Ok(None)
}
