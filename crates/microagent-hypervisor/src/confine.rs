//! What a VMM is kept from: privileges, files, core dumps. Prepared before the
//! fork, put on between fork and exec. Knows no VMM by name.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::Error;

/// What holds a VMM back. All of it is put on before its first instruction
/// except its own system call filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confinement {
    /// It can gain no privilege by executing a program.
    pub no_new_privileges: bool,
    /// Landlock: it reaches only the files of its machine.
    pub files: bool,
    /// Landlock: it can neither listen on nor connect to TCP ports.
    pub tcp: bool,
    /// Landlock: it can signal no process outside, nor reach abstract Unix sockets.
    pub signals: bool,
    /// It runs with no capability of the superuser.
    pub no_capabilities: bool,
    /// Its own seccomp filter is on: it can start no program.
    pub system_calls: bool,
}

impl std::fmt::Display for Confinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.no_new_privileges, "no new privileges"),
            (self.no_capabilities, "no capabilities"),
            (self.files, "its own files only (Landlock)"),
            (self.tcp, "no TCP (Landlock)"),
            (self.signals, "no signals outside (Landlock)"),
            (self.system_calls, "system call filter"),
        ];
        let mut first = true;
        for (_, name) in parts.iter().filter(|(on, _)| *on) {
            write!(f, "{}{name}", if first { "" } else { ", " })?;
            first = false;
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

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
}

/// A prepared confinement.
pub(crate) struct Seal {
    ruleset: Option<OwnedFd>,
    confinement: Confinement,
}

impl Seal {
    /// Prepares the confinement this kernel can give.
    pub(crate) fn prepare(reach: &Reach, filters_calls: bool) -> Result<Self, Error> {
        let (ruleset, scopes) = landlock_ruleset(reach).map_err(|error| Error::Io {
            context: "prepare the VMM's Landlock rules".to_owned(),
            source: io::Error::other(error),
        })?;
        let files = ruleset.is_some();
        Ok(Self {
            confinement: Confinement {
                no_new_privileges: true,
                files,
                tcp: files && scopes >= 4 && !reach.tcp,
                signals: files && scopes >= 6,
                no_capabilities: true,
                system_calls: filters_calls,
            },
            ruleset,
        })
    }

    /// What it amounts to.
    pub(crate) fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// Puts it on. Only system calls: this runs between fork and exec.
    #[allow(unsafe_code)]
    pub(crate) fn apply(&self) -> io::Result<()> {
        setrlimit(
            Resource::Core,
            Rlimit {
                current: Some(0),
                maximum: Some(0),
            },
        )?;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(1024),
                maximum: Some(1024),
            },
        )?;
        drop_capabilities()?;
        rustix::thread::set_no_new_privs(true)?;
        if let Some(ruleset) = &self.ruleset {
            // SAFETY: the descriptor is an open Landlock ruleset; the call takes no pointers.
            let sealed = unsafe {
                libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32)
            };
            if sealed != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Gives up the superuser's capabilities for good, those a root user regains by
/// executing a program included. Without them there is nothing to give up.
#[allow(unsafe_code)]
fn drop_capabilities() -> io::Result<()> {
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
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The rules, as far as this kernel knows such rules, and its Landlock version.
fn landlock_ruleset(reach: &Reach) -> Result<(Option<OwnedFd>, i32), landlock::RulesetError> {
    let version = landlock_version();
    if version < 1 {
        return Ok((None, 0));
    }
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(Scope::from_all(abi))?;
    if !reach.tcp {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    let mut created = ruleset.create()?;
    let read = AccessFs::from_read(abi);
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let make = write | AccessFs::MakeSock | AccessFs::MakeReg | AccessFs::RemoveFile;
    for (paths, access) in [
        (&reach.read, read),
        (&reach.write, write),
        (&reach.make, make),
    ] {
        for path in paths {
            // What is not there cannot be reached either.
            let Ok(fd) = PathFd::new(path) else { continue };
            created = created.add_rule(PathBeneath::new(fd, only_for(path, access)))?;
        }
    }
    Ok((created.into(), version))
}

/// Rights on what lies in a directory mean nothing for a file.
fn only_for(path: &Path, access: landlock::BitFlags<AccessFs>) -> landlock::BitFlags<AccessFs> {
    if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(ABI::V6)
    }
}

/// Landlock's version in this kernel; below 1 where it is absent or off.
#[allow(unsafe_code)]
fn landlock_version() -> i32 {
    /// `LANDLOCK_CREATE_RULESET_VERSION`, linux/landlock.h.
    const ASK_VERSION: u32 = 1;
    // SAFETY: with this flag the call reads nothing and gives a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            ASK_VERSION,
        )
    };
    i32::try_from(version).unwrap_or(0)
}
