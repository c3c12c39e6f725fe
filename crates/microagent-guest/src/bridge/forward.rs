//! From the host to a server on the guest's loopback.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// How long a server whose queue is full may take to make room.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connects to whoever listens at `port`, where programs listen that mean only this machine.
///
/// # Errors
/// What the IPv4 loopback said, if neither has a listener.
pub(crate) fn connect(port: u16) -> io::Result<TcpStream> {
    let at = |host: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(host, port), CONNECT_LIMIT);
    at(Ipv4Addr::LOCALHOST.into())
        .or_else(|error| at(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::{AddressFamily, SocketType, getsockname};

    use super::*;

    #[test]
    fn either_loopback_is_found() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let address = listener.local_addr().unwrap();
            assert_eq!(
                connect(address.port()).unwrap().peer_addr().unwrap(),
                address
            );
        }
        // Its port is nobody's: it is bound and does not listen.
        let free = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&free, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address: SocketAddr = getsockname(&free).unwrap().try_into().unwrap();
        let error = connect(address.port()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
