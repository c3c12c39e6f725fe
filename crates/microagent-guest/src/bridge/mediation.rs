//! From programs of the guest to servers of the host: each port is a listener on both loopbacks
//! and at a Unix socket here, and a vsock port of the host there.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use microagent_protocol::MediationRoute;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::reset_at_end;
use crate::{
    THREAD_STACK, console,
    error::{Context, Error},
    vsock,
};

/// The most connections carried at a time. The host has its own, lower limit for each port.
const MOST_CONNECTIONS: usize = 512;

/// How many connections are carried now.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// A listener and where its connections go.
struct Entrance {
    listener: OwnedFd,
    port: u16,
}

/// Listens at every way to `ports`, and carries what comes on threads from now on.
pub(crate) fn serve(ports: &[u16]) -> Result<(), Error> {
    if ports.is_empty() {
        return Ok(());
    }
    let mut entrances = Vec::new();
    for &port in ports {
        let listeners = listen(port).context(format_args!("listen for the host's port {port}"))?;
        entrances.extend(
            listeners
                .into_iter()
                .map(|listener| Entrance { listener, port }),
        );
    }
    thread::Builder::new()
        .name("mediation".to_owned())
        .stack_size(THREAD_STACK)
        .spawn(move || accept(&entrances))
        .context("start the mediation thread")?;
    Ok(())
}

fn listen(port: u16) -> io::Result<Vec<OwnedFd>> {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    four.set_nonblocking(true)?;
    let socket = listen_at(Path::new(&MediationRoute::socket(port)))?;
    let mut listeners = vec![four.into(), socket.into()];
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        Ok(six) => {
            six.set_nonblocking(true)?;
            listeners.push(six.into());
        }
        // A kernel without IPv6 has no such loopback.
        Err(error)
            if error.kind() == ErrorKind::AddrNotAvailable
                || error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

/// Listens at a Unix socket that every user of the guest may connect to.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn accept(entrances: &[Entrance]) {
    let mut ready: Vec<_> = entrances
        .iter()
        .map(|entrance| PollFd::new(&entrance.listener, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return console::say(format_args!("wait for connections: {error}")),
        }
        for (entrance, fd) in entrances.iter().zip(&ready) {
            if fd.revents().is_empty() {
                continue;
            }
            match accept_with(&entrance.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => carry(socket, entrance.port),
                // Whoever knocked went away again.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    // Out of memory or descriptors: both pass.
                    console::say(format_args!("accept a connection: {error}"));
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

/// A connection's place among the [`MOST_CONNECTIONS`].
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = Self;
        let before = CONNECTIONS.fetch_add(1, Ordering::AcqRel);
        (before < MOST_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::AcqRel);
    }
}

fn carry(socket: OwnedFd, port: u16) {
    let Some(place) = Place::take() else {
        return reset_at_end(&socket);
    };
    let started = thread::Builder::new()
        .name("carry".to_owned())
        .stack_size(THREAD_STACK)
        .spawn(move || {
            let _place = place;
            match vsock::connect(port.into()) {
                // A reset of one has become the end of the other; there is nobody to tell.
                Ok(host) => drop(microagent_relay::join(&socket, &host)),
                // Refused there is refused here.
                Err(_) => reset_at_end(&socket),
            }
        });
    if let Err(error) = started {
        console::say(format_args!("carry a connection: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_of_an_earlier_boot_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mediation/2048.sock");
        drop(listen_at(&path).unwrap());
        let _listener = listen_at(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let taken: Vec<_> = (0..MOST_CONNECTIONS).map(|_| Place::take()).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(Place::take().is_none());
        drop(taken);
        assert_eq!(CONNECTIONS.load(Ordering::Acquire), 0);
    }
}
