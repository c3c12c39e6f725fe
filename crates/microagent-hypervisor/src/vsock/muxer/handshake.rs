//! A host program's first line, `CONNECT <port>\n`, read as it arrives. Knows no table and no guest.

use std::io;

use rustix::net::{RecvFlags, recv};

use super::super::socket::HostSocket;
use crate::hybrid::{MAX_CONNECT, asked_port};

/// A host program that has connected but not yet named its port.
#[derive(Debug)]
pub(crate) struct Handshake {
    socket: HostSocket,
    line: [u8; MAX_CONNECT],
    len: usize,
}

impl Handshake {
    pub(crate) fn new(socket: HostSocket) -> Self {
        Self {
            socket,
            line: [0; MAX_CONNECT],
            len: 0,
        }
    }

    /// The socket, of which nothing behind the line was read.
    pub(crate) fn into_socket(self) -> HostSocket {
        self.socket
    }

    /// The port asked for, once the line is complete. Reads no byte past the newline: what follows belongs to the guest.
    pub(crate) fn read_line(&mut self) -> io::Result<Option<u32>> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "expected CONNECT <port>");
        loop {
            let room = &mut self.line[self.len..];
            if room.is_empty() {
                return Err(invalid());
            }
            let fd = &self.socket;
            let peeked = match recv(fd, &mut *room, RecvFlags::PEEK) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, n)) => n,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let newline = room[..peeked].iter().position(|b| *b == b'\n');
            let take = newline.map_or(peeked, |at| at + 1);
            let (_, taken) = recv(fd, &mut room[..take], RecvFlags::empty())?;
            self.len += taken;
            if newline.is_some() && taken == take {
                let line = &self.line[..self.len - 1];
                return asked_port(line).map(Some).ok_or_else(invalid);
            }
        }
    }
}
