//! What a VMM is kept from: privileges, files, processes, networks, core dumps. Prepared before the
//! fork, put on between fork and exec, measured afterwards. Knows no VMM by name.

pub(crate) mod cgroup;
pub(crate) mod jail;
pub(crate) mod jailer;
mod landlock;
mod measure;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use microagent_protocol::{Confinement, ConfinementLayer, ConfinementMode};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
};

use self::{
    cgroup::{Group, Limits},
    jail::{Failed, Jail, Step},
    jailer::{Anchor, Jailer},
};
use crate::Error;

/// The files a VMM may reach by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// Files and directories it may read and execute. Missing ones are left out.
    pub read: Vec<PathBuf>,
    /// Devices and files it may also write. Missing ones are left out.
    pub write: Vec<PathBuf>,
    /// Directories in which it may make sockets and files of its own.
    pub make: Vec<PathBuf>,
    /// Whether it needs TCP.
    pub tcp: bool,
    /// Whether it needs the host's network.
    pub host_network: bool,
}

/// What a VMM is to be kept from.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub mode: ConfinementMode,
    pub reach: Reach,
    /// Whether it puts a filter on its own system calls.
    pub filters_calls: bool,
    /// What it may take of the host.
    pub limits: Limits,
    /// How a jailer starts it, which gives it a user of its own.
    pub jailer: Option<Jailer>,
    /// Why there is no jailer, where there should be one.
    pub no_jailer: Option<String>,
}

/// What was done about the terms; the rest is measured.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    mode: ConfinementMode,
    /// Why there is no jail, where there is none.
    no_jail: Option<String>,
    /// Whether a jailer started it; if it should have, why not.
    jailer: Result<bool, String>,
    with_users: bool,
    landlock: Option<i32>,
    tcp: bool,
    host_network: bool,
    filters_calls: bool,
    /// The name of its cgroup, or why it has none.
    limits: Result<String, String>,
}

impl Applied {
    /// What is in force for the process with this number: what the kernel shows of it, and
    /// for Landlock, of which it shows nothing, that the call succeeded before the program began.
    pub(crate) fn measure(&self, pid: u32) -> Confinement {
        measure::confinement(self, pid)
    }

    /// What a launch that requires everything needs to know before the program is executed.
    fn shortfall(&self) -> Option<String> {
        let mut missing = Vec::new();
        if let Some(reason) = &self.no_jail {
            missing.push(format!("namespaces: {reason}"));
        }
        if self.host_network {
            missing.push(format!("{}: {HOST_NETWORK}", ConfinementLayer::Network));
        }
        if self.landlock.is_none() {
            missing.push(format!("{}: {NO_LANDLOCK}", ConfinementLayer::Files));
        }
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

/// The most descriptors a VMM may have open.
pub(crate) const MOST_FILES: u64 = 1024;
pub(crate) const NO_LANDLOCK: &str = "this kernel has no Landlock";
const HOST_NETWORK: &str =
    "its network is QEMU's own, which makes the host's connections itself; install passt";

/// A prepared confinement, with or without a jail.
pub(crate) struct Seal {
    pub jail: Option<Jail>,
    /// What a jailed VMM is bound to this process by.
    pub anchor: Option<Anchor>,
    ruleset: Option<OwnedFd>,
    bare: bool,
    pub applied: Applied,
}

/// A way to start a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a jailer.
    Jailer,
    /// In a jail of our own, with or without a user namespace.
    Jail { with_users: bool },
    /// In none.
    Bare,
}

/// The ways there are, the tightest first. Each is prepared only when the one before it failed.
pub(crate) fn ways(terms: &Terms) -> Vec<Way> {
    if terms.mode == ConfinementMode::Off {
        return vec![Way::Bare];
    }
    let mut ways = Vec::new();
    // Who requires every layer gets those that cannot be had with a jailer: see `measure`.
    if terms.jailer.is_some() && terms.mode != ConfinementMode::Required {
        ways.push(Way::Jailer);
    }
    ways.push(Way::Jail { with_users: true });
    if rustix::process::geteuid().is_root() {
        // Root needs no user namespace for the others, where it may have none.
        ways.push(Way::Jail { with_users: false });
    }
    ways.push(Way::Bare);
    ways
}

impl Seal {
    pub(crate) fn prepare(terms: &Terms, way: Way) -> Result<Self, Error> {
        let fail = |what: &str, error: io::Error| Error::Io {
            context: format!("prepare the VMM's {what}"),
            source: error,
        };
        if terms.mode == ConfinementMode::Off {
            return Ok(Self::new(terms, None, None));
        }
        let (jail, anchor) = match way {
            Way::Bare => (None, None),
            Way::Jail { with_users } => {
                let jail = Jail::plan(&terms.reach, with_users);
                (Some(jail.map_err(|error| fail("root", error))?), None)
            }
            Way::Jailer => {
                let anchor = Anchor::cast().map_err(|error| fail("anchor", error))?;
                let jail = anchor
                    .users()
                    .and_then(|users| Jail::plan_below(&terms.reach, terms.jailer.as_ref(), users));
                (
                    Some(jail.map_err(|error| fail("root", error))?),
                    Some(anchor),
                )
            }
        };
        // A process under Landlock may not change its root, which is what a jailer does.
        let ruleset = match way {
            Way::Jailer => None,
            _ => landlock::ruleset(&terms.reach)
                .map_err(|error| fail("Landlock rules", io::Error::other(error)))?,
        };
        let mut seal = Self::new(terms, jail, ruleset);
        seal.applied.jailer = match &terms.no_jailer {
            None => Ok(anchor.is_some()),
            Some(why) => Err(why.clone()),
        };
        seal.anchor = anchor;
        Ok(seal)
    }

    fn new(terms: &Terms, jail: Option<Jail>, ruleset: Option<(OwnedFd, i32)>) -> Self {
        let (ruleset, version) = ruleset.unzip();
        let bare = terms.mode == ConfinementMode::Off;
        let off = "MICROAGENT_CONFINEMENT=off";
        Self {
            applied: Applied {
                mode: terms.mode,
                no_jail: bare.then(|| off.to_owned()),
                jailer: Ok(false),
                with_users: jail.as_ref().is_some_and(Jail::has_users),
                landlock: version,
                tcp: terms.reach.tcp,
                host_network: terms.reach.host_network,
                filters_calls: terms.filters_calls,
                limits: Err(off.to_owned()),
            },
            jail,
            anchor: None,
            ruleset,
            bare,
        }
    }

    /// Remembers why no tighter way was gone; refuses this one where everything is required.
    pub(crate) fn settle(
        &mut self,
        no_jail: Option<String>,
        no_jailer: Option<String>,
    ) -> Result<(), Error> {
        if let Some(why) = no_jailer {
            self.applied.jailer = Err(why);
        }
        if self.jail.is_none() && !self.bare {
            self.applied.no_jail = no_jail;
        }
        match (self.applied.mode, self.applied.shortfall()) {
            (ConfinementMode::Required, Some(missing)) => Err(Error::Confinement { missing }),
            _ => Ok(()),
        }
    }

    /// Limits what the process may take, where that is to be had.
    pub(crate) fn limit(&mut self, pid: u32, terms: &Terms) -> Option<Group> {
        if self.bare {
            return None;
        }
        let held = Group::hold(pid, &terms.limits);
        self.applied.limits = held.as_ref().map(Group::name).map_err(Clone::clone);
        held.ok()
    }

    /// Puts it on, but for the jail. Only system calls: this runs between fork and exec.
    pub(crate) fn apply(&self) -> Result<(), Failed> {
        if self.bare {
            return Ok(());
        }
        for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, MOST_FILES)] {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(resource, limit).map_err(|errno| (Step::Limits, errno))?;
        }
        // A jailer needs them, and gives them up with its user.
        if self.anchor.is_none() {
            drop_capabilities().map_err(|errno| (Step::Privileges, errno))?;
        }
        rustix::thread::set_no_new_privs(true).map_err(|errno| (Step::Privileges, errno))?;
        match &self.ruleset {
            Some(ruleset) => restrict(ruleset).map_err(|errno| (Step::Landlock, errno)),
            None => Ok(()),
        }
    }
}

#[allow(unsafe_code)]
fn restrict(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is an open Landlock ruleset; the call takes no pointers.
    let sealed =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    if sealed == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// Closes every descriptor.
#[allow(unsafe_code)]
fn close_all() -> Result<(), Errno> {
    // SAFETY: the process that calls it uses none of its descriptors any more.
    match unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// What the last call of the C library said.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Gives up the superuser's capabilities for good, those a root user regains by
/// executing a program included. Without them there is nothing to give up.
#[allow(unsafe_code)]
fn drop_capabilities() -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`, linux/capability.h.
    const VERSION_3: u32 = 0x2008_0522;
    /// `SECBIT_NOROOT | _LOCKED`, `SECBIT_NO_SETUID_FIXUP | _LOCKED`,
    /// `SECBIT_NO_CAP_AMBIENT_RAISE | _LOCKED`, linux/securebits.h.
    const SECUREBITS: libc::c_ulong = 0x3 | 0xc | 0xc0;
    /// `CAP_LAST_CAP` of any kernel to come: the set is 64 bits wide.
    const LAST: libc::c_ulong = 63;

    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // SAFETY: prctl with these operations takes integers only.
    unsafe {
        // Needs CAP_SETPCAP, as does dropping from the bounding set; a process
        // without it is no superuser, and `no_new_privs` holds it there.
        if libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0) == 0 {
            for capability in 0..=LAST {
                // Fails only past the kernel's last capability.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
        }
    }
    let none = [[0u32; 3]; 2];
    // SAFETY: capset reads the header and, for version 3, two 12-byte sets; both live past the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } != 0 {
        return Err(last_errno());
    }
    Ok(())
}
