//! Copies between a client and the guest: one tar stream, passed on frame by frame.
//!
//! As in an exec session nothing is buffered but the frame in hand. Unlike there a client that goes
//! away ends the copy without a word: a stream that was cut must not look like one that ended.

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::mpsc::{Sender, channel},
};

use microagent_protocol::{
    CopyEnd, ExecRole, FrameError, FrameKind, FrameReader,
    frame::{write_frame, write_json},
    guest::SessionRequest,
    supervisor::{Answer, ErrorKind, ErrorReport},
};

use crate::{
    control::{Hub, deliver, gone, respond},
    engine::Message,
    events::hang_up,
    lifecycle::Input,
    session::{self, Seat, wait_hangup},
    text::harmless,
};

/// The longest message and notice of a guest that is passed on.
const MAX_TEXT: usize = 5_000;

/// Which way the stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// Makes this connection a copy's session; gives it back if none came of it.
pub(crate) fn serve(
    reader: FrameReader<UnixStream>,
    id: &str,
    request: &SessionRequest,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let way = match request {
        SessionRequest::CopyIn(_) => Way::In,
        _ => Way::Out,
    };
    let (seat, guest) = match open(request, hub) {
        Ok(opened) => opened,
        Err(report) => {
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    respond(&reader, id, Ok(Answer::Copying))?;
    // From here on a slow client slows the copy down and is no error.
    reader.get_ref().set_write_timeout(None)?;
    relay(reader, guest, way, seat, hub)?;
    Ok(None)
}

fn open(
    request: &SessionRequest,
    hub: &Hub,
) -> Result<(Seat, FrameReader<UnixStream>), ErrorReport> {
    let seat = hub.sessions.admit()?;
    let (reply, ticket) = channel();
    let role = ExecRole::Command;
    deliver(hub, Message::Exec { role, reply })?;
    let vsock = ticket.recv().map_err(|_| gone())??;
    match session::open_copy(&seat, &vsock, request)? {
        Ok(guest) => Ok((seat, guest)),
        Err(message) => Err(ErrorReport::new(
            ErrorKind::Transient,
            format!("The guest does not copy: {}.", harmless(&message, MAX_TEXT)),
        )),
    }
}

fn relay(
    mut client: FrameReader<UnixStream>,
    mut guest: FrameReader<UnixStream>,
    way: Way,
    seat: Seat,
    hub: &Hub,
) -> io::Result<()> {
    let mut to_client = client.get_ref().try_clone()?;
    let mut to_guest = guest.get_ref().try_clone()?;
    let outbox: Sender<Message> = hub.outbox.clone();
    hub.crew.spawn("copy", move || {
        if let Err(detail) = down(&mut guest, &mut to_client, way) {
            // An engine that is gone has recorded the end already.
            let _ = outbox.send(Message::Happened(Input::Violation { detail }));
        }
        hang_up(guest.get_ref(), Shutdown::Both);
        hang_up(&to_client, Shutdown::Both);
        drop(seat);
    })?;
    if up(&mut client, &mut to_guest, way) {
        wait_hangup(client.get_ref());
    }
    hang_up(&to_guest, Shutdown::Both);
    Ok(())
}

/// Guest to client, until the end or until one of them is gone; an error is the guest's violation.
fn down(
    guest: &mut FrameReader<UnixStream>,
    client: &mut UnixStream,
    way: Way,
) -> Result<(), String> {
    loop {
        let frame = match guest.read() {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => return Ok(()),
            Err(error) => return Err(harmless(&error.to_string(), 500)),
        };
        let passed = match (frame.kind, way) {
            (FrameKind::Stdout, Way::Out) => write_frame(client, frame.kind, frame.payload),
            (FrameKind::Exit, _) => {
                let end: CopyEnd = frame
                    .json()
                    .map_err(|error| harmless(&error.to_string(), 500))?;
                let told = write_json(client, FrameKind::Exit, &made_harmless(end));
                if let Err(error) = told {
                    tracing::debug!("a client did not wait for the end of its copy: {error}");
                }
                return Ok(());
            }
            (kind, _) => return Err(format!("it sent a {kind:?} frame in a copy")),
        };
        if passed.is_err() {
            return Ok(());
        }
    }
}

/// The guest's word on a copy, as it may be shown.
fn made_harmless(end: CopyEnd) -> CopyEnd {
    match end {
        CopyEnd::Done(mut report) => {
            report
                .notices
                .truncate(microagent_protocol::CopyReport::MAX_NOTICES);
            for notice in &mut report.notices {
                *notice = harmless(notice, MAX_TEXT);
            }
            CopyEnd::Done(report)
        }
        CopyEnd::Failed { kind, message } => CopyEnd::Failed {
            kind,
            message: harmless(&message, MAX_TEXT),
        },
    }
}

/// Client to guest. Gives whether the client is to be waited for: it has said all it has to say, or
/// the guest does not listen any more and has the last word.
fn up(client: &mut FrameReader<UnixStream>, guest: &mut UnixStream, way: Way) -> bool {
    if way == Way::Out {
        return true;
    }
    loop {
        let frame = match client.read() {
            Ok(Some(frame)) => frame,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!("a client's copy failed: {error}");
                return false;
            }
        };
        let kind = frame.kind;
        if !matches!(kind, FrameKind::Stdin | FrameKind::StdinEof) {
            tracing::warn!("a client sent a {kind:?} frame in a copy");
            return false;
        }
        if write_frame(guest, kind, frame.payload).is_err() || kind == FrameKind::StdinEof {
            return true;
        }
    }
}
