//! Ports of the loopback, for servers that are told theirs and for tests of what is not there.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::OwnedFd,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt},
};

/// A TCP port of 127.0.0.1 that nobody else is given while this is held. Nobody listens there, unless a
/// server is told to.
///
/// A listener that is closed again leaves less: another test may be given its port, and a program that
/// another test starts just then listens on in its place, until its exec.
#[derive(Debug)]
pub struct Port {
    _held: OwnedFd,
    address: SocketAddr,
}

impl Port {
    /// A free one.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn free() -> Self {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        fcntl_setfd(&socket, FdFlags::CLOEXEC).expect("a socket");
        // Servers set it as well: who only holds an address is not in the way of who listens there.
        sockopt::set_socket_reuseaddr(&socket, true).expect("an address that others may use");
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = getsockname(&socket).expect("its address");
        Self {
            _held: socket,
            address: address.try_into().expect("an address of IP"),
        }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.address.port()
    }

    /// Listens there.
    ///
    /// # Panics
    /// When somebody does already.
    #[must_use]
    pub fn listen(&self) -> TcpListener {
        TcpListener::bind(self.address).expect("nobody else's port")
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, io::ErrorKind, net::TcpStream};

    use super::*;

    #[test]
    fn nobody_is_at_a_port_until_somebody_listens_there() {
        let port = Port::free();
        let connect = || TcpStream::connect(port.address());
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let listener = port.listen();
        let _connected = connect().unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn nobody_else_is_given_a_port_that_is_held() {
        let held: Vec<_> = (0..200).map(|_| Port::free()).collect();
        let held: BTreeSet<_> = held.iter().map(Port::number).collect();
        assert_eq!(held.len(), 200);
    }
}
