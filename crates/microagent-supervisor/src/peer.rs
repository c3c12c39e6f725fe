//! Who is at the other end of a Unix socket.

use std::{io, os::unix::net::UnixStream};

use rustix::process::Uid;

/// Lets only this user and root through.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`], naming the other user.
pub(crate) fn check(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let us = rustix::process::geteuid();
    if is_trusted(peer.uid, us) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "user {} may not talk to a supervisor of user {}",
                peer.uid.as_raw(),
                us.as_raw()
            ),
        ))
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
