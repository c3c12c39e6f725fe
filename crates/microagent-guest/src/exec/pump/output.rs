//! What a process writes, and what is on its way to the host: one frame at a time.

use std::{fs::File, os::fd::OwnedFd};

use microagent_protocol::{
    FrameError, FrameKind,
    frame::{HEADER, MAX_DATA, encode_header},
};
use rustix::{
    buffer::spare_capacity,
    io::{Errno, read, write},
    pipe::fcntl_getpipe_size,
};

use crate::error::Error;

/// The most output of one frame: with its header it fills one packet of a
/// virtio socket, where a byte more would cost another.
const MOST_OUTPUT: usize = MAX_DATA - HEADER;
/// What a terminal may hold of a process that has ended.
const TERMINAL_BUFFER: usize = 128 * 1024;

/// Bytes on their way to the host: at most one data frame of any length.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Where a frame is written, when it is empty.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether everything is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what the stream takes.
    pub(super) fn flush(&mut self, stream: &File) -> Result<(), Error> {
        while self.sent < self.bytes.len() {
            match write(stream, &self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
                Err(error) => return Err(FrameError::Io(error.into()).into()),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Standard output or error.
pub(super) struct Output {
    kind: FrameKind,
    /// Gone at its end.
    fd: Option<OwnedFd>,
    left: Left,
}

/// How many bytes may still be the process's own.
#[derive(Clone, Copy)]
enum Left {
    /// It runs.
    Any,
    /// It has ended, and whether it left anything was not looked at yet.
    Held,
    /// It has ended.
    Bytes(usize),
}

impl Output {
    /// Output of `kind` that is read at `fd`.
    pub(super) fn new(kind: FrameKind, fd: OwnedFd) -> Self {
        Self {
            kind,
            fd: Some(fd),
            left: Left::Any,
        }
    }

    /// Where it is read, until its end.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// The process has ended: from now on only what is there already counts,
    /// as a child left behind may hold it open, or write, for ever.
    pub(super) fn note_exit(&mut self) {
        self.left = Left::Held;
    }

    /// Reads what is there, as one frame behind what little is in `outgoing`.
    pub(super) fn read_into(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        let Some(fd) = &self.fd else {
            return Ok(());
        };
        let most = match self.left {
            Left::Bytes(left) => left.min(MOST_OUTPUT),
            Left::Any | Left::Held => MOST_OUTPUT,
        };
        let bytes = &mut outgoing.bytes;
        let frame = bytes.len();
        let payload = frame + HEADER;
        bytes.reserve_exact(HEADER + MOST_OUTPUT);
        bytes.resize(payload, 0);
        let result = if most == 0 {
            Ok(0)
        } else if most >= bytes.capacity() - payload {
            // As they come, without a page touched before it is needed.
            read(fd, spare_capacity(bytes))
        } else {
            bytes.resize(payload + most, 0);
            read(fd, &mut bytes[payload..])
        };
        let count = result.unwrap_or(0);
        bytes.truncate(if count == 0 { frame } else { payload + count });
        match result {
            Ok(count) if count > 0 => {
                bytes[frame..payload].copy_from_slice(&encode_header(self.kind, count)?);
                let held = match self.left {
                    Left::Any => None,
                    // Asked only now: most processes that end have left nothing.
                    Left::Held => Some(fcntl_getpipe_size(fd).unwrap_or(TERMINAL_BUFFER)),
                    Left::Bytes(left) => Some(left),
                };
                if let Some(held) = held {
                    self.left = Left::Bytes(held.saturating_sub(count));
                }
            }
            Err(Errno::INTR) => {}
            // A process that runs may write more; of one that has ended this was all.
            Err(Errno::AGAIN) if matches!(self.left, Left::Any) => {}
            // The end, or (a terminal says so by EIO) nobody left to write.
            _ => self.fd = None,
        }
        Ok(())
    }
}
