//! The Landlock rules of a VMM, as far as this kernel knows such rules.

use std::{os::fd::OwnedFd, path::Path};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use super::Reach;

/// A prepared ruleset and the kernel's version of Landlock; none where it is absent or off.
pub(super) fn ruleset(reach: &Reach) -> Result<Option<(OwnedFd, i32)>, landlock::RulesetError> {
    let version = version();
    if version < 1 {
        return Ok(None);
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
    let ruleset: Option<OwnedFd> = created.into();
    Ok(ruleset.map(|ruleset| (ruleset, version)))
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
fn version() -> i32 {
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
