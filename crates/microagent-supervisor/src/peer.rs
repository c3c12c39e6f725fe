//! Who is at the other end of a Unix socket.

use std::{io, os::unix::net::UnixStream};

use rustix::process::Uid;

/// Lets only this user and root through.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`], naming the other user.
pub(crate) fn check(stream: &UnixStream) -> io::Result<()> {
    let peer = user(stream)?;
    let us = rustix::process::geteuid();
    if is_trusted(peer, us) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "user {} may not talk to a supervisor of user {}",
                peer.as_raw(),
                us.as_raw()
            ),
        ))
    }
}

#[cfg(target_os = "linux")]
fn user(stream: &UnixStream) -> io::Result<Uid> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid)
}

#[cfg(not(target_os = "linux"))]
#[allow(unsafe_code)]
fn user(stream: &UnixStream) -> io::Result<Uid> {
    use std::os::fd::AsRawFd;

    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the socket is open, and both pointers are to integers of this frame.
    match unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut uid, &raw mut gid) } {
        0 => Ok(Uid::from_raw(uid)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_trusted(peer: Uid, us: Uid) -> bool {
    peer == us || peer == Uid::ROOT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_user_and_root_are_let_through() {
        let (alice, bob) = (Uid::from_raw(1000), Uid::from_raw(1001));
        assert!(is_trusted(alice, alice));
        assert!(is_trusted(Uid::ROOT, alice));
        assert!(!is_trusted(bob, alice));
        assert!(!is_trusted(alice, Uid::ROOT));
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(check(&here).is_ok());
    }
}
