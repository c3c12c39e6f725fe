//! One connection as a pure state machine: packets and socket events in, packets out. Knows no queue, epoll or map.
//!
//! Two byte streams run through it. **Guest to host**: a packet's bytes go straight to the host socket; what the socket
//! will not take waits in `backlog`, never more than the credit we granted. **Host to guest**: nothing is buffered here;
//! bytes are read from the host socket only when the guest has both a receive buffer and credit for them.
//!
//! Everything owed to the guest is a flag or a condition, never a queue, so nothing a guest sends can make memory grow.
//! Whether there is something to send ([`Connection::has_packet`]) and whether to wait for the socket to drain
//! ([`Connection::wants_writable`]) are functions of the state alone; the muxer re-evaluates them after every event, so
//! there is no armed-or-not flag that could be forgotten.

mod to_host;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::num::Wrapping;

use super::packet::{
    HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// The host end of a connection: a non-blocking byte stream whose two directions end separately.
pub(crate) trait HostStream {
    /// Reads without blocking; `Ok(0)` is end of stream.
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes without blocking and without raising a signal.
    fn send(&mut self, buf: &[u8]) -> io::Result<usize>;
    /// No more bytes will be written: the host reader sees end of stream.
    fn finish_sending(&mut self);
    /// No more bytes will be read: the host writer sees a broken pipe.
    fn finish_receiving(&mut self);
}

/// Which connection of the device: the CIDs are fixed, so two ports name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) host_port: u32,
    pub(crate) guest_port: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host asked; the guest has not answered.
    Requesting,
    /// Data may flow.
    Open,
    /// Over for the guest. The host may still be owed the rest of `backlog`.
    Reset,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    key: Key,
    guest_cid: u64,
    state: State,
    /// `None` as soon as nothing more can pass between us and the host program.
    stream: Option<S>,

    owes_request: bool,
    owes_response: bool,
    owes_reset: bool,
    owes_credit_update: bool,
    /// Set while a credit request is unanswered, so that starvation asks once.
    credit_requested: bool,
    shutdown_sent: u32,

    // Guest to host.
    backlog: VecDeque<u8>,
    buf_alloc: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    forwarded_told: Wrapping<u32>,
    /// The guest will send no more.
    guest_eof: bool,
    /// The host side takes no more: the guest's last byte and end of stream were passed on, or the host closed.
    send_closed: bool,

    // Host to guest.
    guest_buf_alloc: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    readable: bool,
    hung_up: bool,
    /// The host will send no more and every byte it sent has been passed on.
    host_eof: bool,
    /// The guest will receive no more.
    guest_deaf: bool,
}

impl<S: HostStream> Connection<S> {
    fn new(key: Key, guest_cid: u64, stream: S, buf_alloc: u32, state: State) -> Self {
        Self {
            key,
            guest_cid,
            state,
            stream: Some(stream),
            owes_request: false,
            owes_response: false,
            owes_reset: false,
            owes_credit_update: false,
            credit_requested: false,
            shutdown_sent: 0,
            backlog: VecDeque::new(),
            buf_alloc,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            forwarded_told: Wrapping(0),
            guest_eof: false,
            send_closed: false,
            guest_buf_alloc: 0,
            guest_forwarded: Wrapping(0),
            sent: Wrapping(0),
            readable: true,
            hung_up: false,
            host_eof: false,
            guest_deaf: false,
        }
    }

    /// A host program asked for `key.guest_port`; the guest will be sent a REQUEST.
    pub(crate) fn from_host(key: Key, guest_cid: u64, stream: S, buf_alloc: u32) -> Self {
        let mut connection = Self::new(key, guest_cid, stream, buf_alloc, State::Requesting);
        connection.owes_request = true;
        connection
    }

    /// The guest's REQUEST `packet` reached a host listener, whose end is `stream`; the guest will be sent a RESPONSE.
    pub(crate) fn from_guest(
        key: Key,
        guest_cid: u64,
        stream: S,
        buf_alloc: u32,
        packet: &Header,
    ) -> Self {
        let mut connection = Self::new(key, guest_cid, stream, buf_alloc, State::Open);
        connection.owes_response = true;
        connection.learn_credit(packet);
        connection
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn stream(&self) -> Option<&S> {
        self.stream.as_ref()
    }

    /// The guest has not answered our REQUEST yet.
    pub(crate) fn is_requesting(&self) -> bool {
        self.state == State::Requesting
    }

    /// The guest knows nothing of this connection any more: its ports are free.
    pub(crate) fn is_forgotten_by_guest(&self) -> bool {
        self.state == State::Reset && !self.owes_reset
    }

    /// Nothing is left to do on either side.
    pub(crate) fn is_done(&self) -> bool {
        self.is_forgotten_by_guest() && self.stream.is_none()
    }

    /// The host side ended both directions and the guest was told; only its answer is missing.
    pub(crate) fn awaits_only_guest_reset(&self) -> bool {
        self.state == State::Open && self.shutdown_sent == SHUTDOWN_BOTH
    }

    /// Bytes accepted from the guest that the host socket has not taken yet; at most the granted credit.
    #[cfg(test)]
    pub(crate) fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    /// The socket should be watched for room.
    pub(crate) fn wants_writable(&self) -> bool {
        self.stream.is_some() && !self.backlog.is_empty()
    }

    /// The connection has something for the guest (or will find out by reading the socket).
    pub(crate) fn has_packet(&self) -> bool {
        match self.state {
            State::Requesting => self.owes_request,
            State::Reset => self.owes_reset,
            State::Open => {
                self.owes_response
                    || self.owes_credit_update
                    || self.shutdown_due() != 0
                    || (self.may_read() && (self.credit() > 0 || !self.credit_requested))
            }
        }
    }

    /// A packet for this connection arrived, `data` its payload (already checked to be `header.len` bytes long).
    pub(crate) fn on_packet(&mut self, header: &Header, data: &[u8]) {
        if self.state == State::Reset {
            return;
        }
        self.learn_credit(header);
        match (header.op, self.state) {
            (op::RST, _) => self.over(false),
            (op::RESPONSE, State::Requesting) => self.on_response(),
            (op::SHUTDOWN, State::Open) => self.on_shutdown(header.flags),
            (op::RW, State::Open) => self.on_data(data),
            (op::CREDIT_UPDATE, State::Open) => {}
            (op::CREDIT_REQUEST, State::Open) => self.owes_credit_update = true,
            // A REQUEST for ports in use, data before RESPONSE, an operation that does not exist: a broken peer.
            _ => self.abort(),
        }
    }

    /// The host socket reported events.
    pub(crate) fn on_socket(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        if hung_up {
            self.hung_up = true;
            if self.state == State::Requesting {
                // The client gave up before the guest answered.
                self.abort();
                return;
            }
            if self.guest_deaf || self.host_eof {
                self.host_gone();
            }
        }
        if writable || hung_up {
            self.flush();
        }
    }

    /// Ends the connection at once on both sides; the guest gets a RST, unless it has had its last word already.
    pub(crate) fn abort(&mut self) {
        let owes_reset = !self.is_forgotten_by_guest();
        self.backlog = VecDeque::new();
        self.over(owes_reset);
    }

    /// Ends the connection at once on the host side; the guest is told nothing.
    pub(crate) fn sever(&mut self) {
        self.backlog = VecDeque::new();
        self.over(false);
    }

    /// The next packet for the guest; a data packet's payload is in `buf[..header.len]`.
    pub(crate) fn next_packet(&mut self, buf: &mut [u8]) -> Option<Header> {
        let op = match self.state {
            State::Requesting if self.owes_request => {
                self.owes_request = false;
                op::REQUEST
            }
            State::Reset if self.owes_reset => {
                self.owes_reset = false;
                op::RST
            }
            State::Requesting | State::Reset => return None,
            State::Open => return self.next_open_packet(buf),
        };
        Some(self.header(op, 0, 0))
    }

    fn next_open_packet(&mut self, buf: &mut [u8]) -> Option<Header> {
        if self.owes_response {
            self.owes_response = false;
            return Some(self.header(op::RESPONSE, 0, 0));
        }
        let room = usize::try_from(self.credit())
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if room > 0
            && self.may_read()
            && let Some(n) = self.read_host(&mut buf[..room])
        {
            self.sent += Wrapping(n);
            return Some(self.header(op::RW, n, 0));
        }
        let due = self.shutdown_due();
        if due != 0 {
            self.shutdown_sent |= due;
            if self.shutdown_sent == SHUTDOWN_BOTH {
                // Nothing can pass any more; only the guest's RST is awaited.
                self.stream = None;
            }
            return Some(self.header(op::SHUTDOWN, 0, self.shutdown_sent));
        }
        if self.may_read() && self.credit() == 0 && !self.credit_requested {
            self.credit_requested = true;
            return Some(self.header(op::CREDIT_REQUEST, 0, 0));
        }
        self.owes_credit_update
            .then(|| self.header(op::CREDIT_UPDATE, 0, 0))
    }

    /// Every packet carries our credit, so any packet settles an owed update.
    fn header(&mut self, op: u16, len: u32, flags: u32) -> Header {
        self.owes_credit_update = false;
        self.forwarded_told = self.forwarded;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            type_: TYPE_STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded.0,
        }
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Bytes the guest can take. A guest that acknowledges bytes it was never sent, or shrinks its buffer, gets none.
    fn credit(&self) -> u32 {
        let in_flight = (self.sent - self.guest_forwarded).0;
        self.guest_buf_alloc.saturating_sub(in_flight)
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_eof && !self.guest_deaf && self.stream.is_some()
    }

    fn shutdown_due(&self) -> u32 {
        let mut flags = 0;
        if self.host_eof {
            flags |= SHUTDOWN_SEND;
        }
        // After the guest's own end of stream, "we receive no more" says nothing until it completes the pair.
        if self.send_closed && (!self.guest_eof || self.host_eof) {
            flags |= SHUTDOWN_RCV;
        }
        flags & !self.shutdown_sent
    }

    fn read_host(&mut self, buf: &mut [u8]) -> Option<u32> {
        let stream = self.stream.as_mut()?;
        loop {
            match stream.recv(buf) {
                Ok(0) => {
                    self.host_eof = true;
                    if self.hung_up {
                        self.host_gone();
                    }
                    return None;
                }
                Ok(n) => return u32::try_from(n).ok(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    // The host closed with our bytes unread.
                    self.host_gone();
                    return None;
                }
            }
        }
    }

    fn on_response(&mut self) {
        self.state = State::Open;
        let line = format!("OK {}\n", self.key.host_port);
        // Nothing was written before, so the socket has room for a line; a short write means a peer that is gone.
        let sent = self.stream.as_mut().map(|s| s.send(line.as_bytes()));
        if !matches!(sent, Some(Ok(n)) if n == line.len()) {
            self.abort();
        }
    }

    fn on_shutdown(&mut self, flags: u32) {
        self.guest_eof |= flags & SHUTDOWN_SEND != 0;
        if flags & SHUTDOWN_RCV != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            if let Some(stream) = self.stream.as_mut() {
                stream.finish_receiving();
            }
            if self.hung_up {
                self.host_gone();
            }
        }
        if self.guest_eof && self.guest_deaf {
            // The guest is done: its RST is the confirmation it waits for (virtio 1.2, 5.10.6.6.1).
            self.over(true);
        } else {
            self.pass_end_of_stream();
        }
    }

    /// The host closed both directions.
    fn host_gone(&mut self) {
        self.hung_up = true;
        self.host_eof = true;
        self.host_deaf();
    }

    /// The guest's side ends now; accepted bytes still go to the host, which then sees end of stream.
    fn over(&mut self, owes_reset: bool) {
        self.state = State::Reset;
        self.owes_reset = owes_reset;
        if self.backlog.is_empty() || self.send_closed {
            self.stream = None;
        } else if let Some(stream) = self.stream.as_mut()
            && !self.guest_deaf
        {
            self.guest_deaf = true;
            stream.finish_receiving();
        }
        self.guest_eof = true;
    }
}

#[cfg(test)]
mod tests;
