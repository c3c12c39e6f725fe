//! Relaying the serial console to a client that attached to it.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use microagent_hypervisor::SerialPort;
use microagent_protocol::{FrameKind, FrameReader, frame::write_frame};

use crate::{crew::Crew, events::hang_up, session::Seat};

/// How much output is passed on at a time.
const CHUNK: usize = 16 * 1024;

/// How long typing may wait for the guest before it is looked whether that still matters.
const TYPING_LIMIT: Duration = Duration::from_millis(200);

/// Relays until one side is over. `seat` holds the port's output, so that it can be ended.
pub(crate) fn relay(
    mut client: FrameReader<UnixStream>,
    port: SerialPort,
    seat: Seat,
    crew: &Crew,
) -> io::Result<()> {
    let SerialPort { mut output, input } = port;
    input.set_write_timeout(Some(TYPING_LIMIT))?;
    let over = Arc::new(AtomicBool::new(false));
    let ours = output.try_clone()?;
    let mut to_client = client.get_ref().try_clone()?;
    let told = Arc::clone(&over);
    crew.spawn("serial", move || {
        show(&mut output, &mut to_client);
        told.store(true, Ordering::Release);
        hang_up(&to_client, Shutdown::Both);
        drop(seat);
    })?;
    while let Ok(Some(frame)) = client.read() {
        match frame.kind {
            FrameKind::Stdin => {
                if !type_in(&input, frame.payload, &over) {
                    break;
                }
            }
            // A terminal has no end of input, and a serial console no size.
            FrameKind::StdinEof | FrameKind::Resize => {}
            kind => {
                tracing::warn!("a client sent a {kind:?} frame to the serial console");
                break;
            }
        }
    }
    hang_up(&ours, Shutdown::Both);
    Ok(())
}

/// Guest to client, until one of them is over.
fn show(output: &mut UnixStream, client: &mut UnixStream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if write_frame(client, FrameKind::Stdout, &buffer[..count]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Client to guest. Gives whether it was typed.
fn type_in(mut input: &UnixStream, mut bytes: &[u8], over: &AtomicBool) -> bool {
    while !bytes.is_empty() {
        match input.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            // The machine has ended.
            Err(_) => return false,
        }
        if over.load(Ordering::Acquire) {
            return false;
        }
    }
    true
}
