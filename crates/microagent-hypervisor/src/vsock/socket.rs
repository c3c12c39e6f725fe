//! Unix sockets as this device needs them: private, bounded in path, never blocking, never raising a signal.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, send, shutdown, socket_with,
};

use super::connection::HostStream;

/// Longest path the kernel takes for a Unix socket (`sun_path` less its NUL).
const MAX_PATH: usize = 107;
/// Longest suffix: `_` and a 32-bit port in decimal.
const MAX_SUFFIX: usize = 11;
/// Pending connections per listener.
const BACKLOG: i32 = 128;
/// Unread bytes thrown away when a socket closes, so that the peer sees end of stream and not a reset. Above what a
/// Unix socket holds by default; a peer that could queue more gets the reset.
const MAX_DISCARD: usize = 512 * 1024;

/// `<uds>_<port>`: where guest connections to host port `port` arrive.
pub(crate) fn port_path(uds: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(uds);
    path.push(format!("_{port}"));
    path.into()
}

/// Refuses a path that could not carry a port suffix; better at start than at the first connection.
pub(crate) fn check_path(path: &Path, suffixed: bool) -> io::Result<()> {
    let limit = if suffixed {
        MAX_PATH - MAX_SUFFIX
    } else {
        MAX_PATH
    };
    let len = path.as_os_str().len();
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the path has {len} bytes and a socket here takes at most {limit}: use a shorter directory"
            ),
        ));
    }
    Ok(())
}

/// Binds a listener only its owner may connect to. Nobody can connect before the mode is set.
pub(crate) fn listen_private(path: &Path) -> io::Result<UnixListener> {
    check_path(path, false)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

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
