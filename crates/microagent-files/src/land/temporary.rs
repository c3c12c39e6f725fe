//! Something that gets its name only when it is complete.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, Dev, FileType, Mode, OFlags, linkat, openat, renameat, symlinkat, unlinkat},
    io::Errno,
};

use crate::{
    error::{Context, CopyError},
    system,
};

/// Made, but not under its name yet; gone if it is dropped.
#[derive(Debug)]
pub struct Temporary {
    file: Option<File>,
    /// The directory and the name it has until then; a file may have none.
    named: Option<(OwnedFd, OsString)>,
}

impl Temporary {
    /// An empty file in `folder`, for its owner alone.
    ///
    /// # Errors
    /// The system's.
    pub fn file(folder: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        if let Some(file) = system::nameless_file(folder, mode)? {
            return Ok(Self {
                file: Some(file.into()),
                named: None,
            });
        }
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let (file, named) = named(folder, |name| openat(folder, name, flags, mode))?;
        Ok(Self {
            file: Some(file.into()),
            named: Some(named),
        })
    }

    /// A symbolic link.
    pub(super) fn symlink(folder: &OwnedFd, target: &[u8]) -> io::Result<Self> {
        let target = OsStr::from_bytes(target);
        Self::without_file(folder, |name| symlinkat(target, folder, name))
    }

    /// A device or pipe.
    pub(super) fn node(folder: &OwnedFd, kind: FileType, device: Dev) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        Self::without_file(folder, |name| {
            system::make_node(folder, name, kind, mode, device)
        })
    }

    /// Another name for a file.
    pub(super) fn hard_link(folder: &OwnedFd, from: &OwnedFd, target: &[u8]) -> io::Result<Self> {
        let target = OsStr::from_bytes(target);
        Self::without_file(folder, |name| {
            linkat(from, target, folder, name, AtFlags::empty())
        })
    }

    fn without_file(
        folder: &OwnedFd,
        make: impl Fn(&OsStr) -> Result<(), Errno>,
    ) -> io::Result<Self> {
        let ((), named) = named(folder, make)?;
        Ok(Self {
            file: None,
            named: Some(named),
        })
    }

    /// The open file. `shown` is what it is called in messages.
    ///
    /// # Errors
    /// [`CopyError::Missing`] if it is no file, [`CopyError::System`].
    pub fn file_mut(&mut self, shown: &Path) -> Result<File, CopyError> {
        match &self.file {
            Some(file) => file.try_clone().context("open", shown),
            None => Err(CopyError::Missing {
                path: shown.to_owned(),
            }),
        }
    }

    /// The directory it is in and its name there, if it has one.
    pub(super) fn place(&self) -> Option<(&OwnedFd, &OsStr)> {
        let (folder, name) = self.named.as_ref()?;
        Some((folder, name))
    }

    /// Gives it its name in `folder`, in place of the file that has it now.
    ///
    /// # Errors
    /// [`CopyError::Conflict`] if a directory has that name, [`CopyError::System`].
    pub fn publish(mut self, folder: &OwnedFd, name: &[u8], shown: &Path) -> Result<(), CopyError> {
        let name = OsStr::from_bytes(name);
        if self.named.is_none()
            && let Some(file) = &self.file
        {
            match system::name_file(file, folder, name) {
                Ok(()) => return Ok(()),
                // It has to take another's place, which only a rename does.
                Err(Errno::EXIST) => {
                    let ((), named) = named(folder, |name| system::name_file(file, folder, name))
                        .context("name", shown)?;
                    self.named = Some(named);
                }
                Err(error) => return Err(error).context("name", shown),
            }
        }
        let Some((from, temporary)) = &self.named else {
            return Ok(());
        };
        match renameat(from, temporary, folder, name) {
            // Two names of one file: then nothing was renamed, and the drop removes the other.
            Ok(()) => Ok(()),
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => Err(CopyError::Conflict {
                path: shown.to_owned(),
                reason: "is a directory; a file does not take its place",
            }),
            Err(error) => Err(error).context("name", shown),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some((folder, name)) = &self.named {
            // Renamed, it is gone.
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }
}

/// Makes something under a name that nothing has yet.
fn named<T>(
    folder: &OwnedFd,
    make: impl Fn(&OsStr) -> Result<T, Errno>,
) -> io::Result<(T, (OwnedFd, OsString))> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".microagent-{}-{count}.part", process::id()));
        match make(&name) {
            Ok(made) => return Ok((made, (folder.try_clone()?, name))),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
