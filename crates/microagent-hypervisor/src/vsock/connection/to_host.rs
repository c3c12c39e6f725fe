//! The byte stream from the guest to the host program: what the socket will not take waits, within the credit granted.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::num::Wrapping;

use super::{Connection, HostStream, State};

impl<S: HostStream> Connection<S> {
    pub(super) fn on_data(&mut self, data: &[u8]) {
        let Ok(len) = u32::try_from(data.len()) else {
            self.abort();
            return;
        };
        let in_flight = (self.received - self.forwarded).0;
        if self.guest_eof || len > self.buf_alloc.saturating_sub(in_flight) {
            self.abort();
            return;
        }
        self.received += Wrapping(len);
        if self.send_closed {
            // The host stopped reading; the guest learns it from our SHUTDOWN and may still have bytes under way.
            self.forwarded += Wrapping(len);
        } else {
            let taken = if self.backlog.is_empty() {
                self.send(data)
            } else {
                0
            };
            if !self.send_closed {
                self.backlog.extend(&data[taken..]);
            }
        }
        self.consider_credit_update();
    }

    /// Offers `data` to the host socket until it has taken all or would block; returns how much it took.
    fn send(&mut self, data: &[u8]) -> usize {
        let mut taken = 0;
        while taken < data.len() {
            let Some(stream) = self.stream.as_mut() else {
                break;
            };
            match stream.send(&data[taken..]) {
                Ok(n) if n > 0 => {
                    taken += n;
                    // `taken` is at most `buf_alloc`, a u32.
                    self.forwarded += Wrapping(n as u32);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.host_deaf();
                    break;
                }
            }
        }
        taken
    }

    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.send_closed {
            let backlog = std::mem::take(&mut self.backlog);
            let (front, _) = backlog.as_slices();
            let offered = front.len();
            let taken = self.send(front);
            if !self.send_closed {
                self.backlog = backlog;
                self.backlog.drain(..taken);
            }
            if taken < offered {
                break;
            }
        }
        if self.backlog.is_empty() {
            // Give the memory back: a connection that is not behind costs nothing.
            self.backlog = VecDeque::new();
            if self.state == State::Reset {
                self.stream = None;
            }
        }
        self.pass_end_of_stream();
        self.consider_credit_update();
    }

    /// The guest's end of stream follows its last byte.
    pub(super) fn pass_end_of_stream(&mut self) {
        if self.guest_eof && self.backlog.is_empty() && !self.send_closed {
            self.send_closed = true;
            if let Some(stream) = self.stream.as_mut() {
                stream.finish_sending();
            }
        }
    }

    /// Tells the guest of freed room once half its view of the buffer is used up: at zero it is always told.
    fn consider_credit_update(&mut self) {
        let guest_sees = self
            .buf_alloc
            .saturating_sub((self.received - self.forwarded_told).0);
        if self.forwarded != self.forwarded_told && guest_sees < self.buf_alloc / 2 {
            self.owes_credit_update = true;
        }
    }

    /// The host stopped reading: what it has not taken is lost, as with any pipe.
    pub(super) fn host_deaf(&mut self) {
        self.send_closed = true;
        self.backlog = VecDeque::new();
        self.forwarded = self.received;
        if self.state == State::Reset {
            self.stream = None;
        }
    }
}
