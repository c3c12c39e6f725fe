//! The directories below a destination, opened one by one so that no symbolic link leads elsewhere.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat},
    io::Errno,
};

use crate::{
    error::{Context, CopyError},
    system,
};

/// A destination's directory.
#[derive(Debug)]
pub(super) struct Ground {
    base: OwnedFd,
    /// The directory used last, and where it is.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

/// To go through a directory only, which takes no right to read it.
const THROUGH: OFlags = system::PASS
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Ground {
    /// Everything below `base`, which is taken as its owner wrote it, links and all.
    pub(super) fn new(base: &Path) -> Result<Self, CopyError> {
        let flags = system::PASS | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = openat(CWD, base, flags, Mode::empty()).context("open", base)?;
        Ok(Self { base, last: None })
    }

    /// The directory at `place`; what is missing of it is made.
    pub(super) fn folder(
        &mut self,
        place: &[Vec<u8>],
        shown: &Path,
    ) -> Result<&OwnedFd, CopyError> {
        if place.is_empty() {
            return Ok(&self.base);
        }
        let known = matches!(&self.last, Some((last, _)) if last == place);
        if !known {
            let folder = self.walk(place, shown, Self::step_or_make)?;
            self.last = Some((place.to_vec(), folder));
        }
        match &self.last {
            Some((_, folder)) => Ok(folder),
            None => Ok(&self.base),
        }
    }

    /// The directory at `place`, opened to be read and changed.
    pub(super) fn open(&self, place: &[Vec<u8>], shown: &Path) -> Result<OwnedFd, CopyError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some((name, above)) = place.split_last() else {
            return openat(&self.base, ".", flags, Mode::empty()).context("open", shown);
        };
        let folder = self.walk(above, shown, step)?;
        openat(&folder, OsStr::from_bytes(name), flags, Mode::empty())
            .map_err(|error| blocked(error, shown))
    }

    fn walk(
        &self,
        place: &[Vec<u8>],
        shown: &Path,
        mut next: impl FnMut(&OwnedFd, &[u8]) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, CopyError> {
        let mut folder = openat(&self.base, ".", THROUGH, Mode::empty()).context("open", shown)?;
        for name in place {
            folder = next(&folder, name).map_err(|error| blocked(error, shown))?;
        }
        Ok(folder)
    }

    fn step_or_make(folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
        match step(folder, name) {
            Err(Errno::NOENT) => {
                mkdirat(folder, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))?;
                step(folder, name)
            }
            result => result,
        }
    }
}

fn step(folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(folder, OsStr::from_bytes(name), THROUGH, Mode::empty())
}

/// What keeps a name from being reached.
fn blocked(error: Errno, shown: &Path) -> CopyError {
    match error {
        Errno::NOTDIR | Errno::LOOP => CopyError::Conflict {
            path: shown.to_owned(),
            reason: "cannot be a directory or below one: a file or a symbolic link is in the way, \
                     and links are not followed",
        },
        error => CopyError::System {
            doing: "open",
            path: shown.to_owned(),
            source: error.into(),
        },
    }
}

/// Makes a directory, for its owner alone until it is filled; one that is there serves.
pub(super) fn make_directory(
    folder: impl AsFd,
    name: &[u8],
    shown: &Path,
) -> Result<(), CopyError> {
    let name = OsStr::from_bytes(name);
    match mkdirat(&folder, name, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => openat(&folder, name, THROUGH, Mode::empty())
            .map(|_| ())
            .map_err(|error| blocked(error, shown)),
        Err(error) => Err(error).context("make", shown),
    }
}
