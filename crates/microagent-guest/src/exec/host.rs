//! The host's end of a session: its requests, one after the other over one stream.
//!
//! A stream is used again when a session is over, as a new one costs a packet each for its request,
//! its answer, its end and the end's answer, and the guest an interrupt for each.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use microagent_protocol::{
    Frame, FrameError, FrameKind,
    frame::{HEADER, MAX_JSON, write_json},
    guest::{SessionReply, SessionRequest},
};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags},
    io::{Errno, ioctl_fionbio, read, write},
};

use super::pump::wait;
use crate::{
    error::{Context, Error},
    vsock,
};

/// How long the host may take to say what it wants, or to hear that it cannot have it.
const OPENING_LIMIT: Duration = Duration::from_secs(10);

/// What is read at a time of a request.
const PIECE: usize = 4096;

/// The host, at the other end of a stream.
#[derive(Debug)]
pub(crate) struct Host {
    /// Does not block.
    pub(super) stream: File,
    /// What came and was not looked at yet.
    pub(super) incoming: Vec<u8>,
    /// Whether a session was over this stream already.
    used: bool,
}

impl Host {
    /// The host at the other end of `stream`.
    pub(super) fn new(stream: File) -> Result<Self, Error> {
        ioctl_fionbio(&stream, true).context("unblock a session")?;
        Ok(Self {
            stream,
            incoming: Vec::new(),
            used: false,
        })
    }

    /// After a session, of which `incoming` is left.
    pub(super) fn again(stream: File, incoming: Vec<u8>) -> Self {
        Self {
            stream,
            incoming,
            used: true,
        }
    }

    /// What it wants next; `None` if it wants nothing more.
    pub(super) fn request(&mut self) -> Result<Option<SessionRequest>, Error> {
        // One that has just come is about to say it; one that stays may take its time to begin.
        let mut deadline = (!self.used).then(|| Instant::now() + OPENING_LIMIT);
        loop {
            if let Some(request) = self.next_request()? {
                return Ok(Some(request));
            }
            if self.incoming.len() > HEADER + MAX_JSON {
                return Err(FrameError::Truncated.into());
            }
            if deadline.is_none() && !self.incoming.is_empty() {
                deadline = Some(Instant::now() + OPENING_LIMIT);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            wait(&mut [PollFd::new(&self.stream, PollFlags::IN)], left)?;
            self.incoming.reserve(PIECE);
            match read(&self.stream, spare_capacity(&mut self.incoming)) {
                Ok(0) if self.used && self.incoming.is_empty() => return Ok(None),
                Ok(0) | Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
                Err(Errno::AGAIN) if left.is_some_and(|left| left.is_zero()) => {
                    return Err(FrameError::Truncated.into());
                }
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(FrameError::Io(error.into()).into()),
            }
        }
    }

    /// A request that is there as a whole.
    fn next_request(&mut self) -> Result<Option<SessionRequest>, Error> {
        while let Some((frame, rest)) = Frame::split(&self.incoming)? {
            let request = match frame.kind {
                // Said before the host had heard that the process it was for is over.
                FrameKind::Stdin | FrameKind::StdinEof | FrameKind::Signal | FrameKind::Resize
                    if self.used =>
                {
                    None
                }
                _ => Some(frame.expect_json(FrameKind::Header, "a session request")),
            };
            let consumed = self.incoming.len() - rest.len();
            self.incoming.drain(..consumed);
            if let Some(request) = request {
                return Ok(Some(request?));
            }
        }
        Ok(None)
    }

    /// Answers its request with something short.
    pub(super) fn reply(&mut self, reply: &SessionReply) -> Result<(), Error> {
        let mut bytes = Vec::new();
        write_json(&mut bytes, FrameKind::Header, reply)?;
        let deadline = Instant::now() + OPENING_LIMIT;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match write(&self.stream, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    wait(&mut [PollFd::new(&self.stream, PollFlags::OUT)], Some(left))?;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
                Err(error) => return Err(FrameError::Io(error.into()).into()),
            }
        }
        Ok(())
    }

    /// Whether it has lost interest already.
    pub(super) fn has_hung_up(&self) -> Result<bool, Error> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        wait(&mut fds, Some(Duration::ZERO))?;
        Ok(!fds[0].revents().is_empty())
    }

    /// Its stream, for what is no session of a process: it blocks, for a bounded time.
    pub(super) fn into_blocking(self) -> Result<File, Error> {
        if !self.incoming.is_empty() {
            // It waits for the answer before it goes on.
            return Err(FrameError::Truncated.into());
        }
        let limit = Some(OPENING_LIMIT);
        vsock::set_timeouts(&self.stream, limit, limit).context("bound a session")?;
        ioctl_fionbio(&self.stream, false).context("block a session")?;
        Ok(self.stream)
    }
}
