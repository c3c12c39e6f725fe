//! The host program's side of the hybrid socket: the CONNECT handshake, and listeners for guest connections.
//!
//! Works the same against Firecracker's vsock device. Knows nothing of the device's inside.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::socket::{check_path, listen_private, port_path};

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
    let mut stream = UnixStream::connect(uds)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
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
        stream.set_read_timeout(Some(left(deadline)?))?;
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
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(timed_out()),
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

fn left(deadline: Instant) -> io::Result<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
        .ok_or_else(timed_out)
}

fn timed_out() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the guest did not accept the vsock connection in time",
    )
}
