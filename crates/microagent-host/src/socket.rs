//! Streams between processes of one host.

#[cfg(unix)]
pub use self::unix::*;
#[cfg(not(unix))]
pub use self::unsupported::*;

#[cfg(unix)]
mod unix {
    use std::{io, net::SocketAddr, os::fd::OwnedFd};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    /// A stream between two processes of this host, reached by a path: a Unix socket.
    pub type LocalStream = std::os::unix::net::UnixStream;

    /// Where such streams are accepted.
    pub type LocalListener = std::os::unix::net::UnixListener;

    /// A Unix stream socket that no program we start gets to see.
    ///
    /// # Errors
    /// The system's.
    pub fn unix_socket() -> io::Result<OwnedFd> {
        stream_socket(AddressFamily::UNIX)
    }

    /// A TCP socket for an address like this one that no program we start gets to see.
    ///
    /// # Errors
    /// The system's.
    pub fn tcp_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
        stream_socket(match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        })
    }

    fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
        #[cfg(not(target_vendor = "apple"))]
        let flags = SocketFlags::CLOEXEC;
        #[cfg(target_vendor = "apple")]
        let flags = SocketFlags::empty();
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        #[cfg(target_vendor = "apple")]
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        Ok(socket)
    }
}

#[cfg(not(unix))]
mod unsupported {
    use std::{
        convert::Infallible,
        io::{self, Read, Write},
        net::Shutdown,
        path::Path,
        time::Duration,
    };

    /// A stream between two processes of this host, reached by a path. There is none here yet.
    #[derive(Debug)]
    pub struct LocalStream(Infallible);

    impl LocalStream {
        /// Connects to whoever listens at `path`.
        ///
        /// # Errors
        /// [`io::ErrorKind::Unsupported`].
        pub fn connect(_path: impl AsRef<Path>) -> io::Result<Self> {
            Err(crate::unsupported("talking to a supervisor"))
        }

        /// Another handle on the same stream.
        ///
        /// # Errors
        /// The system's.
        pub fn try_clone(&self) -> io::Result<Self> {
            match self.0 {}
        }

        /// How long a read may take.
        ///
        /// # Errors
        /// The system's.
        pub fn set_read_timeout(&self, _limit: Option<Duration>) -> io::Result<()> {
            match self.0 {}
        }

        /// How long a write may take.
        ///
        /// # Errors
        /// The system's.
        pub fn set_write_timeout(&self, _limit: Option<Duration>) -> io::Result<()> {
            match self.0 {}
        }

        /// Ends one direction, or both.
        ///
        /// # Errors
        /// The system's.
        pub fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
            match self.0 {}
        }
    }

    impl Read for LocalStream {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            match self.0 {}
        }
    }

    impl Read for &LocalStream {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            match self.0 {}
        }
    }

    impl Write for LocalStream {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            match self.0 {}
        }

        fn flush(&mut self) -> io::Result<()> {
            match self.0 {}
        }
    }

    impl Write for &LocalStream {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            match self.0 {}
        }

        fn flush(&mut self) -> io::Result<()> {
            match self.0 {}
        }
    }
}
