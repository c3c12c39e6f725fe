//! A host program's socket as this device needs it: never blocking, never raising a signal.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, send,
    shutdown, socket_with,
};

use super::connection::HostStream;

/// Unread bytes thrown away when a socket closes, so that the peer sees end of stream and not a reset. Above what a
/// Unix socket holds by default; a peer that could queue more gets the reset.
const MAX_DISCARD: usize = 512 * 1024;

/// The host program's end of a connection.
#[derive(Debug)]
pub(crate) struct HostSocket(UnixStream);

impl HostSocket {
    /// Takes an accepted stream and makes it non-blocking.
    pub(crate) fn accepted(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// Connects to a listener without waiting: a full backlog counts as a refusal.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(UnixStream::from(socket)))
    }
}

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl HostStream for HostSocket {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    fn send(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, buf, SendFlags::NOSIGNAL)?)
    }

    fn finish_sending(&mut self) {
        // Fails only where the peer is gone, which the next event says.
        let _ = shutdown(&self.0, Shutdown::Write);
    }

    fn finish_receiving(&mut self) {
        // As above.
        let _ = shutdown(&self.0, Shutdown::Read);
    }
}

impl Drop for HostSocket {
    /// Closing a Unix socket with unread bytes makes the peer's next read fail instead of ending: read them away.
    fn drop(&mut self) {
        // Fails only where the peer is gone already.
        let _ = shutdown(&self.0, Shutdown::Both);
        let mut discarded = 0;
        let mut buf = [0; 4096];
        while discarded < MAX_DISCARD {
            match self.0.read(&mut buf) {
                Ok(n) if n > 0 => discarded += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
    }
}
