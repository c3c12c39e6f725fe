//! Sockets between guest and host: connect to it, listen for it, and for nobody else.

use std::{
    fs::File,
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// The host's context identifier.
const HOST_CID: u32 = libc::VMADDR_CID_HOST;

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all-zero bytes are a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Connects to the host's `port`.
pub(crate) fn connect(port: u32) -> io::Result<File> {
    let socket = socket()?;
    let address = address(HOST_CID, port);
    // SAFETY: `address` is a sockaddr_vm of the length given and lives through the call.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_LENGTH,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(socket))
}

/// Bounds how long a blocking read and a blocking write may take (`None`: for ever).
pub(crate) fn set_timeouts(
    socket: &impl AsRawFd,
    read: Option<Duration>,
    write: Option<Duration>,
) -> io::Result<()> {
    for (option, limit) in [(libc::SO_RCVTIMEO, read), (libc::SO_SNDTIMEO, write)] {
        let limit = limit.unwrap_or_default();
        let value = libc::timeval {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_usec: libc::suseconds_t::from(limit.subsec_micros()),
        };
        // SAFETY: `value` is a timeval of the length given and lives through the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Accepts streams from the host.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Listens on the guest's `port`.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let socket = socket()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: `address` is a sockaddr_vm of the length given and lives through the call.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                ADDRESS_LENGTH,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no pointers.
        if unsafe { libc::listen(socket.as_raw_fd(), 128) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// The next stream from the host. A stream from anybody else (a process of
    /// the guest, over the loopback transport) is closed: sessions run as root.
    pub(crate) fn accept(&self) -> io::Result<File> {
        loop {
            let mut peer = address(0, 0);
            let mut length = ADDRESS_LENGTH;
            // SAFETY: `peer` has room for `length` bytes and both live through the call.
            let fd = unsafe {
                libc::accept4(
                    self.0.as_raw_fd(),
                    (&raw mut peer).cast(),
                    &raw mut length,
                    libc::SOCK_CLOEXEC,
                )
            };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: a fresh descriptor that nobody else owns.
            let stream = unsafe { File::from_raw_fd(fd) };
            if peer.svm_cid == HOST_CID {
                return Ok(stream);
            }
        }
    }
}
