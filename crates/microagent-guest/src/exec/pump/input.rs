//! Standard input on its way to a process, bounded by credit.

use std::{collections::VecDeque, os::fd::OwnedFd};

use microagent_protocol::frame::STDIN_WINDOW;
use rustix::io::{Errno, write};

use super::super::terminal;
use crate::error::Error;

/// Credit is given in parts of this size, or when everything was taken.
const CREDIT_STEP: u32 = STDIN_WINDOW / 4;

/// Standard input, on its way to the process.
#[derive(Default)]
pub(super) struct Input {
    /// Gone when it is closed, or was never there.
    fd: Option<OwnedFd>,
    queue: VecDeque<u8>,
    /// Bytes taken since credit was given.
    taken: u32,
    /// The last byte that was taken in.
    last: Option<u8>,
    ended: bool,
    /// Whether it is a terminal, which stays open after the end of input.
    is_terminal: bool,
}

impl Input {
    /// Input that is written to `fd`, if it is wanted at all.
    pub(super) fn new(fd: Option<OwnedFd>) -> Self {
        Self {
            fd,
            ..Self::default()
        }
    }

    /// Where it is written, until it is closed.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Takes bytes of the host in.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.fd.is_none() || self.ended {
            // Nobody reads it, but the host must not wait.
            self.taken = self.taken.saturating_add(bytes.len() as u32);
            return Ok(());
        }
        if self.queue.len() + bytes.len() > STDIN_WINDOW as usize {
            return Err(Error::Malformed {
                what: "the standard input".to_owned(),
                why: format!("more than {STDIN_WINDOW} bytes came ahead of credit"),
            });
        }
        self.queue.extend(bytes);
        self.last = bytes.last().copied().or(self.last);
        Ok(())
    }

    /// The host has no more.
    pub(super) fn end(&mut self, terminal: Option<&OwnedFd>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(terminal) = terminal.filter(|_| self.fd.is_some()) {
            self.queue
                .extend(terminal::end_of_input(terminal, self.last));
        } else if self.queue.is_empty() {
            self.fd = None;
        }
        self.is_terminal = terminal.is_some();
    }

    /// Whether something waits for the process to take it.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the host should hear how much was taken.
    pub(super) fn credit_due(&self) -> bool {
        self.taken >= CREDIT_STEP || (self.taken > 0 && self.queue.is_empty())
    }

    /// What was taken since the last time.
    pub(super) fn grant(&mut self) -> u32 {
        std::mem::take(&mut self.taken)
    }

    /// Gives the process what it takes.
    pub(super) fn feed(&mut self) {
        while let (Some(fd), (bytes, _)) = (&self.fd, self.queue.as_slices()) {
            if bytes.is_empty() {
                break;
            }
            match write(fd, bytes) {
                Ok(count) => {
                    self.queue.drain(..count);
                    self.taken = self.taken.saturating_add(count as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It does not read any more.
                Err(_) => self.close(),
            }
        }
        if self.ended && !self.is_terminal {
            self.fd = None;
        }
    }

    /// Nobody reads it any more: whatever comes is taken and dropped.
    pub(super) fn close(&mut self) {
        self.fd = None;
        self.taken = self.taken.saturating_add(self.queue.len() as u32);
        self.queue.clear();
    }
}
