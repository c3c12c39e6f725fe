//! Reaching a server of the host, in bounded time.

use std::{
    io::{self, ErrorKind},
    net::{TcpStream, ToSocketAddrs},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use microagent_host::socket::unix_socket;
use microagent_protocol::MediationTarget;
use rustix::net::SocketAddrUnix;

/// Connects to `target`, each of its addresses in turn, within `limit` after its name was looked up.
pub(super) fn connect(target: &MediationTarget, limit: Duration) -> io::Result<OwnedFd> {
    match target {
        MediationTarget::Tcp { host, port } => {
            let addresses = (host.as_str(), *port).to_socket_addrs()?;
            let deadline = Instant::now() + limit;
            let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                match TcpStream::connect_timeout(&address, left) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(stream.into());
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        MediationTarget::Unix(path) => connect_unix(path, limit),
    }
}

/// A server whose queue is full is waited for, as long as the send timeout says.
fn connect_unix(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let stream = UnixStream::from(unix_socket()?);
    stream.set_write_timeout(Some(limit))?;
    match rustix::net::connect(&stream, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
        Err(error) => return Err(error.into()),
    }
    stream.set_write_timeout(None)?;
    Ok(stream.into())
}

/// Whether `target` takes a connection within `limit`, its name's look-up included.
pub(super) fn probe(target: &MediationTarget, limit: Duration) -> io::Result<()> {
    let (answer, answered) = channel();
    let target = target.clone();
    // A look-up cannot be interrupted: a thread that is left behind ends by itself.
    thread::Builder::new()
        .name("probe".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            // Nobody waits any more when it took too long.
            let _ = answer.send(connect(&target, limit).map(drop));
        })?;
    match answered.recv_timeout(limit) {
        Ok(reached) => reached,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(ErrorKind::TimedOut.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn tcp(listener: &TcpListener, host: &str) -> MediationTarget {
        let port = listener.local_addr().unwrap().port();
        format!("{host}:{port}").parse().unwrap()
    }

    #[test]
    fn servers_are_reached_by_name_address_and_path() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        probe(&tcp(&four, "127.0.0.1"), SOON).unwrap();
        probe(&tcp(&four, "localhost"), SOON).unwrap();
        probe(&tcp(&six, "[::1]"), SOON).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _unix = UnixListener::bind(&path).unwrap();
        probe(&MediationTarget::Unix(path), SOON).unwrap();
    }

    #[test]
    fn what_does_not_answer_is_known_in_time() {
        let gone = testkit::Port::free();
        let target = gone.address().to_string().parse().unwrap();
        let refused = probe(&target, SOON).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let missing = MediationTarget::Unix("/no/such/socket".into());
        assert_eq!(
            probe(&missing, SOON).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        // A queue that is full.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = unix_socket().unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let target = MediationTarget::Unix(path);
        let begun = Instant::now();
        let held: Vec<_> = (0..4)
            .map_while(|_| connect(&target, Duration::from_millis(200)).ok())
            .collect();
        assert!(held.len() < 4 && begun.elapsed() < SOON);
    }
}
