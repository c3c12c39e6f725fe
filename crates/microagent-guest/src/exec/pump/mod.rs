//! The pump of one session: bytes between a stream and a process, in one poll
//! loop with bounded buffers. What cannot be passed on is not read, so the
//! process waits for the host and never fills the guest's memory.

mod input;
mod output;
mod patience;
mod subject;

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use microagent_protocol::{
    Frame, FrameError, FrameKind, TtySize,
    frame::{HEADER, MAX_DATA, write_frame, write_json},
    guest::SessionReply,
};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, read},
};

pub(crate) use self::subject::{KILL_LIMIT, Process, Subject};
use self::{
    input::Input,
    output::{Outgoing, Output},
    patience::FullPipes,
};
use super::{host::Host, terminal};
use crate::error::{Context, Error};

/// How long the news that a process has begun waits for the news that it has ended. Most commands are
/// over before the host could do anything with the former, and each packet costs both sides a while.
/// Long enough for a small program under emulation, and too short for anybody to notice.
const SETTLING: Duration = Duration::from_millis(6);
/// How much is said at once in that case.
const SETTLED: usize = 4096;
/// As many frames of output make a process one that writes a lot.
const A_LOT: u8 = 4;

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Sides {
    /// Where standard input is written, if it is streamed.
    pub(crate) input: Option<OwnedFd>,
    /// Where output is read, by the kind of frame it becomes.
    pub(crate) outputs: Vec<(FrameKind, OwnedFd)>,
    /// The terminal's both ends. The process's end is kept open so that the
    /// terminal outlives a process that closes and reopens it.
    pub(crate) terminal: Option<(OwnedFd, OwnedFd)>,
}

/// One session in progress.
pub(crate) struct Pump<S> {
    stream: File,
    subject: S,
    terminal: Option<(OwnedFd, OwnedFd)>,
    incoming: Vec<u8>,
    outgoing: Outgoing,
    input: Input,
    outputs: Vec<Output>,
    exited: bool,
    /// How many frames of output there were, up to [`A_LOT`].
    frames: u8,
    patience: Option<FullPipes>,
}

impl<S: Subject> Pump<S> {
    /// Between `host` and `subject`, whose streams are at `sides`.
    pub(crate) fn new(host: Host, subject: S, sides: Sides) -> Self {
        let outputs = sides.outputs.into_iter();
        Self {
            stream: host.stream,
            subject,
            terminal: sides.terminal,
            incoming: host.incoming,
            outgoing: Outgoing::default(),
            input: Input::new(sides.input),
            outputs: outputs.map(|(kind, fd)| Output::new(kind, fd)).collect(),
            exited: false,
            frames: 0,
            patience: None,
        }
    }

    /// Sends `reply`, pumps until the subject has ended, and sends its report.
    /// If the host hangs up before, the subject is made to end. Both are given back.
    pub(crate) fn run(mut self, reply: &SessionReply) -> (S, Result<Host, Error>) {
        let result = self.pump(reply);
        if result.is_err() && !self.exited {
            self.input.close();
            self.outputs.clear();
            self.terminal = None;
            self.subject.hang_up();
        }
        let host = result.map(|()| Host::again(self.stream, self.incoming));
        (self.subject, host)
    }

    fn pump(&mut self, reply: &SessionReply) -> Result<(), Error> {
        self.prepare()?;
        write_json(self.outgoing.buffer(), FrameKind::Header, reply)?;
        self.settle()?;
        while !self.is_over() {
            self.outgoing.flush(&self.stream)?;
            if self.outgoing.is_empty() && self.input.credit_due() {
                let credit = self.input.grant().to_be_bytes();
                write_frame(self.outgoing.buffer(), FrameKind::StdinCredit, &credit)?;
                continue;
            }
            self.step()?;
        }
        write_json(
            self.outgoing.buffer(),
            FrameKind::Exit,
            &self.subject.report(),
        )?;
        self.outgoing.flush(&self.stream)?;
        while !self.outgoing.is_empty() {
            wait(&mut [PollFd::new(&self.stream, PollFlags::OUT)], None)?;
            self.outgoing.flush(&self.stream)?;
        }
        Ok(())
    }

    /// Waits a moment for the end. If it comes, and without much output, everything is said at once.
    fn settle(&mut self) -> Result<(), Error> {
        let events = self.subject.events().into_iter().flatten();
        let mut fds: Vec<_> = events
            .map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN))
            .collect();
        wait(&mut fds, Some(SETTLING))?;
        if !self.subject.ended() {
            return Ok(());
        }
        self.note_exit();
        for output in &mut self.outputs {
            while output.fd().is_some() && self.outgoing.len() < SETTLED {
                output.read_into(&mut self.outgoing)?;
            }
        }
        Ok(())
    }

    /// Whether everything came that will.
    fn is_over(&self) -> bool {
        self.exited && self.outputs.iter().all(|output| output.fd().is_none())
    }

    fn prepare(&self) -> Result<(), Error> {
        let fds = self.outputs.iter().filter_map(Output::fd);
        for fd in fds.chain(self.input.fd()) {
            ioctl_fionbio(fd, true).context("unblock a stream")?;
        }
        Ok(())
    }

    /// Waits until something can go on, and lets it.
    fn step(&mut self) -> Result<(), Error> {
        let ready = self.wait()?;
        if ready.event && self.subject.ended() {
            self.note_exit();
        }
        if self.subject.due().is_some_and(|left| left.is_zero()) && !self.exited {
            self.subject.tick();
        }
        if ready.input {
            self.input.feed();
        }
        for (index, output) in self.outputs.iter_mut().enumerate() {
            if self.outgoing.is_empty() && (self.exited || ready.outputs & (1 << index) != 0) {
                output.read_into(&mut self.outgoing)?;
                self.outgoing.flush(&self.stream)?;
                self.frames = self.frames.saturating_add(1);
            }
        }
        if self.frames >= A_LOT && self.patience.is_none() {
            self.patience = Some(FullPipes::awaited());
        }
        // Whoever came last comes first next time, so that neither starves the other.
        self.outputs.reverse();
        if ready.stream {
            self.receive()?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready, Error> {
        let writing = !self.outgoing.is_empty();
        let draining = self.exited && !writing;
        let mut fds = Vec::with_capacity(6);
        let stream_events = if writing {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        fds.push(PollFd::new(&self.stream, stream_events));
        if !self.exited {
            let events = self.subject.events().into_iter().flatten();
            fds.extend(events.map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN)));
        }
        let events = 1..fds.len();
        let input = self
            .input
            .fd()
            .filter(|_| self.input.wants_to_write())
            .map(|fd| {
                fds.push(PollFd::new(fd, PollFlags::OUT));
                fds.len() - 1
            });
        let first_output = fds.len();
        let mut indices = Vec::with_capacity(2);
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(fd) = output.fd().filter(|_| !writing && !draining) {
                fds.push(PollFd::new(fd, PollFlags::IN));
                indices.push(index);
            }
        }
        let limit = if draining {
            Some(Duration::ZERO)
        } else {
            self.subject.due().filter(|_| !self.exited)
        };
        wait(&mut fds, limit)?;
        let happened = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready {
            stream: fds[0]
                .revents()
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            event: events.into_iter().any(happened),
            input: input.is_some_and(happened),
            outputs: indices
                .iter()
                .enumerate()
                .filter(|(place, _)| happened(first_output + place))
                .fold(0, |set, (_, index)| set | 1 << index),
        })
    }

    /// From now on only what is in the pipes already counts: a child left
    /// behind may hold them open, or write, for ever.
    fn note_exit(&mut self) {
        self.exited = true;
        self.input.close();
        self.outputs.iter_mut().for_each(Output::note_exit);
    }

    fn receive(&mut self) -> Result<(), Error> {
        self.incoming.reserve_exact(HEADER + MAX_DATA);
        let result = read(&self.stream, spare_capacity(&mut self.incoming));
        match result {
            Ok(0) => return Err(Error::HostGone),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
            Err(error) => return Err(FrameError::Io(error.into()).into()),
        }
        let buffer = std::mem::take(&mut self.incoming);
        let mut rest = &buffer[..];
        while let Some((frame, after)) = Frame::split(rest)? {
            self.obey(frame)?;
            rest = after;
        }
        let consumed = buffer.len() - rest.len();
        self.incoming = buffer;
        self.incoming.drain(..consumed);
        if self.incoming.len() > HEADER + MAX_DATA {
            // Only a JSON frame can be that long, and none is due.
            return Err(FrameError::Truncated.into());
        }
        self.input.feed();
        Ok(())
    }

    fn obey(&mut self, frame: Frame<'_>) -> Result<(), Error> {
        match frame.kind {
            FrameKind::Stdin => self.input.take(frame.payload)?,
            FrameKind::StdinEof => self
                .input
                .end(self.terminal.as_ref().map(|(agent, _)| agent)),
            FrameKind::Signal => {
                if let [number @ 1..=64] = frame.payload {
                    self.subject.signal((*number).into());
                }
            }
            FrameKind::Resize => {
                if let (Some(size), Some((agent, _))) =
                    (TtySize::from_bytes(frame.payload), &self.terminal)
                {
                    terminal::resize(agent, size)?;
                }
            }
            got => {
                let wanted = "input, a signal or a size";
                return Err(FrameError::Unexpected { got, wanted }.into());
            }
        }
        Ok(())
    }
}

/// What can go on.
struct Ready {
    stream: bool,
    event: bool,
    input: bool,
    /// One bit for each output.
    outputs: u32,
}

pub(crate) fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<(), Error> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("wait for a session"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
