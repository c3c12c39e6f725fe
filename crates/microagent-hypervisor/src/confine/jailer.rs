//! What Firecracker's `jailer` needs from us to hold a VMM that stays bound to this process.
//!
//! The jailer changes its user on the way, and with that the kernel forgets that the process is to
//! end with its parent. So the VMM gets a PID namespace whose first process is an *anchor*: it does
//! nothing, keeps its user, and ends with this process; then the kernel ends all in its namespace.
//! The anchor's user namespace also says whose the machine's files are: in the jail they belong to
//! the VMM's user, and on the disk nothing changes (idmapped mounts).

use std::{
    ffi::OsString,
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::close_all;
use crate::process::{clone, leave};

/// The lowest of the users that jailed VMMs have. Above what systemd gives to containers, and far
/// below 2^31, above which some programs see negative numbers.
const FIRST_USER: u32 = 0x7000_0000;

/// How to start a VMM by a jailer.
#[derive(Clone, Debug)]
pub(crate) struct Jailer {
    /// The jailer, absolute.
    pub program: PathBuf,
    /// Its arguments, those of the VMM included.
    pub arguments: Vec<OsString>,
    /// Its `--chroot-base-dir`: a directory that is the machine's own.
    pub base: PathBuf,
    /// The root that it makes below that.
    pub root: PathBuf,
}

/// The user, and group, of this process's VMM where a jailer started it: nobody else's, as long as this
/// process lives. Connections that such a VMM makes for its guest come from it.
#[must_use]
pub fn own_user() -> u32 {
    FIRST_USER + std::process::id()
}

/// A process that holds a PID namespace and a user namespace. Dropping it ends all in them.
#[derive(Debug)]
pub(crate) struct Anchor {
    _process: Process,
    /// The VMM's user. (In its namespace this process has another number.)
    pub user: u32,
    /// In it, our files are [`own_user`]'s.
    users: File,
    processes: File,
    /// Where this thread's children are born otherwise.
    own: File,
}

impl Anchor {
    /// The calling thread must live as long as the anchor is to.
    pub(super) fn cast() -> std::io::Result<Self> {
        let own = File::open("/proc/thread-self/ns/pid")?;
        let parent = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let namespaces = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID).cast_unsigned();
        let Some((pid, pidfd)) = clone(namespaces.into())? else {
            stay(parent.as_fd());
        };
        // Whatever fails from here on, it is ended.
        let process = Process(pidfd);
        let of = |what: &str| format!("/proc/{pid}/{what}");
        let user = own_user();
        let map = format!("0 {user} 1\n");
        fs::write(of("uid_map"), &map)?;
        fs::write(of("gid_map"), &map)?;
        Ok(Self {
            _process: process,
            user,
            users: File::open(of("ns/user"))?,
            processes: File::open(of("ns/pid"))?,
            own,
        })
    }

    pub(crate) fn users(&self) -> std::io::Result<OwnedFd> {
        self.users.try_clone().map(OwnedFd::from)
    }

    /// From here on this thread's children are born into the PID namespace.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        let kind = Some(LinkNameSpaceType::ProcessID);
        move_into_link_name_space(self.processes.as_fd(), kind)
    }

    /// Undoes [`Self::enter`]. Not for such a child itself: what it is born into, it stays in.
    pub(crate) fn step_back(&self) -> Result<(), Errno> {
        move_into_link_name_space(self.own.as_fd(), Some(LinkNameSpaceType::ProcessID))
    }
}

/// The anchor's process.
#[derive(Debug)]
struct Process(OwnedFd);

impl Drop for Process {
    fn drop(&mut self) {
        let ended = pidfd_send_signal(&self.0, Signal::KILL)
            .and_then(|()| waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED));
        if let Err(error) = ended {
            tracing::error!(%error, "the anchor of a VMM could not be ended");
        }
    }
}

/// All that an anchor does. Only system calls: it is a copy of a process with threads.
fn stay(parent: BorrowedFd<'_>) -> ! {
    let bound = || -> Result<(), Errno> {
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let mut fds = [PollFd::from_borrowed_fd(parent, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default()))? {
            // It holds nothing of the parent's open.
            0 => close_all(),
            _ => Err(Errno::SRCH),
        }
    };
    if bound().is_ok() {
        // Until it is killed.
        while matches!(poll(&mut [], None), Ok(_) | Err(Errno::INTR)) {}
    }
    leave();
}
