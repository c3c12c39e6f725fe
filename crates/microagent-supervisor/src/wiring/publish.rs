//! Published ports: listeners on the host whose connections end at a server in the guest.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use microagent_host::socket::tcp_socket;
use microagent_hypervisor::hybrid;
use microagent_protocol::{
    FrameKind, FrameReader, PublishedPort,
    frame::write_json,
    guest::{AGENT_PORT, SessionReply, SessionRequest},
};
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_socket_reuseaddr, set_socket_reuseport,
};

use super::{gate::Gate, links::Link};
use crate::{Error, text::harmless};

/// The most connections of one published port at a time; further ones are reset.
pub(super) const MAX_CONNECTIONS: u32 = 128;

/// Connections that may wait to be taken, as the standard library has it.
const BACKLOG: i32 = 128;

/// How long the guest may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// How long the guest may take to reach its server.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// Binds `port`; gives it with the host's port that was bound.
///
/// # Errors
/// [`Error::PortUnusable`].
pub(super) fn bind(port: PublishedPort) -> Result<(TcpListener, PublishedPort), Error> {
    let unusable = |source| Error::PortUnusable {
        address: port.host_address(),
        source,
    };
    let listener = TcpListener::bind(port.host_address()).map_err(unusable)?;
    listener.set_nonblocking(true).map_err(unusable)?;
    let host_port = listener
        .local_addr()
        .map_err(unusable)
        .map(|address: SocketAddr| address.port())?;
    Ok((listener, PublishedPort { host_port, ..port }))
}

/// Whether both cannot be bound at a time.
pub(super) fn overlap(a: &PublishedPort, b: &PublishedPort) -> bool {
    let covers = a.host == b.host || a.host.is_unspecified() || b.host.is_unspecified();
    a.host_port == b.host_port && covers
}

/// `wanted` with the ports of the host that are bound, if they are those of `bound`, each at
/// whatever address.
///
/// # Errors
/// [`Error::OtherPorts`].
pub(super) fn same_elsewhere(
    bound: &[PublishedPort],
    wanted: &[PublishedPort],
) -> Result<Vec<PublishedPort>, Error> {
    let same = |(bound, wanted): (&PublishedPort, &PublishedPort)| {
        bound.guest_port == wanted.guest_port && [0, bound.host_port].contains(&wanted.host_port)
    };
    if bound.len() != wanted.len() || !bound.iter().zip(wanted).all(same) {
        return Err(Error::OtherPorts);
    }
    let ports = bound.iter().zip(wanted);
    let ports = ports.map(|(bound, wanted)| PublishedPort {
        host: wanted.host,
        ..*bound
    });
    Ok(ports.collect())
}

/// Binds `port`, also where `going` stand in its way, listeners of ours that close when it is
/// done. Nobody else's address is shared, and nobody else can come in between.
///
/// # Errors
/// [`Error::PortUnusable`]; the others listen on.
pub(super) fn bind_instead(
    port: PublishedPort,
    going: &[&TcpListener],
) -> Result<(TcpListener, PublishedPort), Error> {
    match bind(port) {
        Err(Error::PortUnusable { source, .. })
            if source.kind() == io::ErrorKind::AddrInUse && !going.is_empty() => {}
        done => return done,
    }
    let sharing = |on| {
        let mut going = going.iter();
        going.try_for_each(|listener| set_socket_reuseport(listener, on))
    };
    let bound = sharing(true)
        .map_err(io::Error::from)
        .and_then(|()| bind_sharing(port.host_address()));
    let alone = sharing(false).map_err(io::Error::from);
    let listener = bound
        .and_then(|listener| alone.map(|()| listener))
        .map_err(|source| Error::PortUnusable {
            address: port.host_address(),
            source,
        })?;
    Ok((listener, port))
}

/// A listener at an address that others have who share it with this user.
fn bind_sharing(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(&address)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    set_socket_reuseport(&socket, false)?;
    Ok(socket.into())
}

/// Carries one connection to `guest_port`, once there is a guest.
pub(super) fn carry(client: TcpStream, guest_port: u16, gate: &Gate, link: &Link) {
    let Ok(handle) = client.try_clone() else {
        return reset(&client);
    };
    let Some(client) = link.hold(client) else {
        return reset(&handle);
    };
    // A client that vanished without a word is found out some day.
    let tuned = set_socket_keepalive(&handle, true)
        .map_err(io::Error::from)
        .and_then(|()| handle.set_nodelay(true));
    if let Err(error) = tuned {
        tracing::debug!("a connection stays as it is: {error}");
    }
    match open(guest_port, gate) {
        Ok((guest, half_close)) => {
            // Only now: nothing is left to be reset but by the relay itself.
            drop(handle);
            let Some(guest) = link.hold(guest) else {
                return;
            };
            let carried = match half_close {
                true => microagent_relay::join(&client, &guest),
                false => microagent_relay::join_pieces(&client, &guest),
            };
            if let Err(error) = carried {
                tracing::debug!("a connection to the guest's port {guest_port} broke: {error}");
            }
        }
        Err(error) => {
            tracing::debug!(
                "a connection to the guest's port {guest_port} is refused: {}",
                harmless(&error.to_string(), 500)
            );
            reset(&handle);
        }
    }
}

/// Asks the guest for a connection; gives whether each of its directions ends on its own.
fn open(port: u16, gate: &Gate) -> io::Result<(std::os::unix::net::UnixStream, bool)> {
    let way = gate.pass().ok_or(io::ErrorKind::NotConnected)?;
    let guest = hybrid::connect(&way.vsock, AGENT_PORT, Instant::now() + CONNECT_LIMIT)?;
    guest.set_read_timeout(Some(OPEN_LIMIT))?;
    guest.set_write_timeout(Some(OPEN_LIMIT))?;
    let request = SessionRequest::Forward {
        port,
        pieces: !way.half_close,
    };
    write_json(&mut &guest, FrameKind::Header, &request).map_err(io::Error::other)?;
    let mut reader = FrameReader::new(guest);
    let reply = reader
        .require()
        .and_then(|frame| frame.expect_json(FrameKind::Header, "a reply"))
        .map_err(io::Error::other)?;
    match reply {
        SessionReply::Opened => Ok((reader.into_inner(), way.half_close)),
        SessionReply::Failed { message, .. } => Err(io::Error::other(message)),
        SessionReply::Started { .. } | SessionReply::Line { .. } => {
            Err(io::Error::other("it started a process instead"))
        }
    }
}

/// Ends a connection so that its client knows it was refused.
pub(super) fn reset(client: &TcpStream) {
    if let Err(error) = set_socket_linger(client, Some(Duration::ZERO)) {
        tracing::debug!("a refused connection ends without a reset: {error}");
    }
}
