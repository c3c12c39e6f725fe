//! Who is at the other end of a Unix socket.

use std::{io, os::unix::net::UnixStream};

use rustix::process::Uid;

/// Lets only this user and root through.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`], naming the other user.
pub(crate) fn check(stream: &UnixStream) -> io::Result<()> {
    admit(user(stream)?, None)
}

/// Lets through what comes from this supervisor's own machine, too: where a jailer started its VMM,
/// that has a user of its own.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_machine(stream: &UnixStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let jailed = Some(Uid::from_raw(microagent_hypervisor::jailed_user()));
    #[cfg(not(target_os = "linux"))]
    let jailed = None;
    admit(user(stream)?, jailed)
}

fn admit(peer: Uid, jailed: Option<Uid>) -> io::Result<()> {
    let us = rustix::process::geteuid();
    if is_trusted(peer, us) || Some(peer) == jailed {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "user {} may not talk to a supervisor of user {}",
            peer.as_raw(),
            us.as_raw()
        ),
    ))
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

    /// A connection of another user: the kernel notes the user of the *thread* that connects.
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    fn connected_by(user: u32) -> UnixStream {
        use std::{fs, os::unix::fs::PermissionsExt as _};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for path in [directory.path(), &path] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let connecting = std::thread::spawn(move || {
            // SAFETY: integers. The call without the C library changes this thread alone.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            UnixStream::connect(path).unwrap()
        });
        let _there = connecting.join().unwrap();
        listener.accept().unwrap().0
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_user_of_a_jailed_machine_is_its_guests_and_nobody_elses() {
        if !rustix::process::geteuid().is_root() {
            testkit::skip_test("only root can be another user");
            return;
        }
        let jailed = microagent_hypervisor::jailed_user();
        let own = connected_by(jailed);
        assert!(check_machine(&own).is_ok());
        assert!(check(&own).is_err());
        let anothers = connected_by(jailed + 1);
        let error = check_machine(&anothers).unwrap_err();
        assert!(error.to_string().contains(&(jailed + 1).to_string()));
    }
}
