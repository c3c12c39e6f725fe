//! Connections that become a line of the guest's shell, or its serial console.

use std::{io, os::unix::net::UnixStream, sync::mpsc::channel};

use microagent_protocol::{
    ExecRole, FrameReader, ShellLine,
    supervisor::{Answer, ErrorKind, ErrorReport},
};

use super::{Hub, deliver, gone, process::when_ready, respond};
use crate::{
    engine::Message,
    lifecycle::Input,
    serial,
    session::{self, LineOpened, Notice, Orphan, Outcome, Relay},
};

/// Runs a line in the guest's shell on this connection; gives the connection back if none came of it.
pub(super) fn run_line(
    reader: FrameReader<UnixStream>,
    id: &str,
    line: ShellLine,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let opened = hub.sessions.admit().and_then(|seat| {
        let vsock = when_ready(&reader, ExecRole::Command, hub)?;
        Ok((session::open_line(&seat, &vsock, line)?, seat))
    });
    let (answer, running) = match opened {
        Ok((LineOpened::Running { pid, shell, guest }, seat)) => {
            (Ok(Answer::Line { pid, shell }), Some((guest, seat)))
        }
        Ok((LineOpened::Failed { reason, message }, _)) => {
            (Ok(Answer::FailedToStart { reason, message }), None)
        }
        Err(report) => (Err(report), None),
    };
    respond(&reader, id, answer)?;
    let Some((guest, seat)) = running else {
        return Ok(Some(reader));
    };
    reader.get_ref().set_write_timeout(None)?;
    let relay = Relay {
        client: reader,
        guest,
        orphan: Orphan::End,
        stdin: false,
        capture: None,
        seat,
    };
    let outbox = hub.outbox.clone();
    relay.run(&hub.crew, move |notice| {
        if let Notice::Over(Outcome::Violation(detail)) = notice {
            // An engine that is gone has recorded the end already.
            let _ = outbox.send(Message::Happened(Input::Violation { detail }));
        }
    })?;
    Ok(None)
}

/// Makes this connection the serial console; gives it back if that cannot be.
pub(super) fn attach(
    reader: FrameReader<UnixStream>,
    id: &str,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let attached = hub.sessions.admit().and_then(|seat| {
        let (reply, answer) = channel();
        deliver(hub, Message::Console { reply })?;
        let port = answer.recv().map_err(|_| gone())??;
        let held = port
            .output
            .try_clone()
            .map_err(|error| ErrorReport::new(ErrorKind::Transient, error.to_string()))?;
        seat.hold(held)?;
        Ok((port, seat))
    });
    match attached {
        Ok((port, seat)) => {
            respond(&reader, id, Ok(Answer::Attached))?;
            reader.get_ref().set_write_timeout(None)?;
            serial::relay(reader, port, seat, &hub.crew)?;
            Ok(None)
        }
        Err(report) => {
            respond(&reader, id, Err(report))?;
            Ok(Some(reader))
        }
    }
}
