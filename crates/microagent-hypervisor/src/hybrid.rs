//! The host program's side of the hybrid socket: the CONNECT handshake, and listeners for guest connections.
//!
//! Works the same against Firecracker's vsock device. Knows nothing of the device's inside.

use std::ffi::OsString;
use std::io::{self, Read, Write};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use microagent_host::socket::unix_socket;
use rustix::net::{SocketAddrUnix, bind};

/// Longest path the system takes for a Unix socket (`sun_path` less its NUL).
const MAX_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// Longest suffix: `_` and a 32-bit port in decimal.
const MAX_SUFFIX: usize = 11;
/// Pending connections per listener.
const BACKLOG: i32 = 128;

/// `CONNECT 4294967295\n` and nothing longer.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) const MAX_CONNECT: usize = 19;

/// `OK 4294967295\n`.
const MAX_REPLY: usize = 14;

/// Opens a stream to port `port` of the guest behind the hybrid socket `uds`.
///
/// Returns once the guest has accepted. The stream is in blocking mode without time limits.
///
/// # Errors
///
/// `TimedOut` when `deadline` passes first; `ConnectionRefused` when the device closed the stream instead of
/// confirming it, which is how a guest without a listener on `port` shows; `InvalidData` when something else than a
/// vsock device answers; else what the socket reports.
pub fn connect(uds: &Path, port: u32, deadline: Instant) -> io::Result<UnixStream> {
    check_path(uds, true)?;
    let mut stream = dial(uds, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => not_accepted(),
        _ => error,
    })?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;

    // Byte by byte: what follows the newline is the guest's and must stay in the socket.
    let mut reply = [0; MAX_REPLY];
    let mut len = 0;
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} did not answer like a vsock device", uds.display()),
        )
    };
    loop {
        stream.set_read_timeout(Some(left(deadline).ok_or_else(not_accepted)?))?;
        let byte = reply.get_mut(len..=len).ok_or_else(invalid)?;
        match stream.read(byte) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nothing in the guest accepts connections on vsock port {port}"),
                ));
            }
            Ok(_) if byte == b"\n" => break,
            Ok(_) => len += 1,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(not_accepted()),
            Err(e) => return Err(e),
        }
    }
    let digits = reply[..len].strip_prefix(b"OK ").ok_or_else(invalid)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(invalid());
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Listens for guest connections to host port `port`: a socket `<uds>_<port>` only its owner can connect to.
///
/// The caller unlinks the file when done.
///
/// # Errors
///
/// `AddrInUse` when the file exists; `InvalidInput` when the path is longer than a socket's may be.
pub fn listen(uds: &Path, port: u32) -> io::Result<UnixListener> {
    listen_private(&port_path(uds, port))
}

/// `<uds>_<port>`: where guest connections to host port `port` arrive.
pub(crate) fn port_path(uds: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(uds);
    path.push(format!("_{port}"));
    path.into()
}

/// The port that a host program asks for, by its first line without the newline.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn asked_port(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line.strip_prefix(b"CONNECT ")?).ok()?;
    // A sign would be taken for a part of the number.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
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
    let socket = unix_socket()?;
    bind_private(&socket, path)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// The name has the mode that the socket had before: at no time is it a question who has the name.
#[cfg(target_os = "linux")]
fn bind_private(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    rustix::fs::fchmod(socket, rustix::fs::Mode::from(0o600))?;
    Ok(bind(socket, &SocketAddrUnix::new(path)?)?)
}

#[cfg(not(target_os = "linux"))]
fn bind_private(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    bind(socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Connects to the socket at `path`, and to none that a symbolic link there leads to: a VMM that was taken over
/// may make one where its socket was.
///
/// Even connecting can wait, for somebody who has stopped accepting; the send timeout bounds that too.
///
/// # Errors
/// `TimedOut` when `deadline` passes first; else what the system reports.
pub(crate) fn dial(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let stream = UnixStream::from(unix_socket()?);
    stream.set_write_timeout(Some(left(deadline).ok_or_else(late)?))?;
    match connect_here(&stream, path) {
        Ok(()) => Ok(stream),
        Err(rustix::io::Errno::AGAIN) => Err(late()),
        Err(rustix::io::Errno::LOOP) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is a symbolic link and not the VMM's socket",
                path.display()
            ),
        )),
        Err(e) => Err(e.into()),
    }
}

#[cfg(target_os = "linux")]
fn connect_here(stream: &UnixStream, path: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, open};
    let place = open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Symlink {
        return Err(rustix::io::Errno::LOOP);
    }
    let pinned = format!("/proc/self/fd/{}", place.as_raw_fd());
    rustix::net::connect(stream, &SocketAddrUnix::new(pinned)?)
}

/// Nobody else makes files where the drivers of other systems have their sockets.
#[cfg(not(target_os = "linux"))]
fn connect_here(stream: &UnixStream, path: &Path) -> rustix::io::Result<()> {
    rustix::net::connect(stream, &SocketAddrUnix::new(path)?)
}

fn left(deadline: Instant) -> Option<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
}

fn not_accepted() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the guest did not accept the vsock connection in time",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// More time than anybody takes who answers.
    const MUCH: Duration = Duration::from_secs(20);

    /// What `connect` makes within `limit` of a server that says `reply` and keeps the stream open or not.
    fn against(reply: &'static [u8], stay: bool, limit: Duration) -> io::Result<UnixStream> {
        let dir = TempDir::new().unwrap();
        let uds = dir.path().join("v");
        let listener = listen_private(&uds).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"CONNECT 1024\n");
            stream.write_all(reply).unwrap();
            stay.then_some(stream)
        });
        let result = connect(&uds, 1024, Instant::now() + limit);
        drop(server.join().unwrap());
        result
    }

    #[test]
    fn an_answer_is_taken_to_its_newline_and_no_further() {
        let mut stream = against(b"OK 1073741824\nhello", false, MUCH).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn any_other_answer_is_an_error_in_time() {
        use io::ErrorKind::{ConnectionRefused, InvalidData, TimedOut};
        for (reply, stay, kind) in [
            (&b""[..], false, ConnectionRefused),
            (b"OK 12", false, ConnectionRefused),
            (b"", true, TimedOut),
            (b"OK 12", true, TimedOut),
            (b"OK \n", true, InvalidData),
            (b"OK x\n", true, InvalidData),
            (b"NO 12\n", true, InvalidData),
            (b"OK 10737418240000000000000000000000", true, InvalidData),
        ] {
            let limit = match kind {
                TimedOut => Duration::from_millis(300),
                _ => MUCH,
            };
            let error = against(reply, stay, limit).unwrap_err();
            assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(reply));
        }
    }

    #[test]
    fn a_device_that_no_longer_accepts_is_a_timeout() {
        let dir = TempDir::new().unwrap();
        let uds = dir.path().join("v");
        let _listener = listen_private(&uds).unwrap();
        let soon = || Instant::now() + Duration::from_millis(50);
        let mut held = Vec::new();
        // Fill the backlog, then one more.
        while let Ok(stream) = dial(&uds, soon()) {
            held.push(stream);
            assert!(held.len() < 10_000);
        }
        let error = connect(&uds, 1, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_link_to_another_socket_is_not_followed() {
        let dir = TempDir::new().unwrap();
        let (ours, theirs) = (dir.path().join("v"), dir.path().join("theirs"));
        let listener = listen_private(&theirs).unwrap();
        std::os::unix::fs::symlink(&theirs, &ours).unwrap();
        let soon = Instant::now() + Duration::from_secs(5);
        let error = connect(&ours, 1, soon).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        listener.set_nonblocking(true).unwrap();
        let heard = listener.accept().unwrap_err();
        assert_eq!(heard.kind(), io::ErrorKind::WouldBlock, "nobody called");
    }

    #[test]
    fn what_listens_is_its_owners() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("v");
        let _listener = listen_private(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }
}
