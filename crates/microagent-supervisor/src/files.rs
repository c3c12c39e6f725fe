//! Private files: mode 0600 from birth, replaced whole or not at all.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use microagent_protocol::supervisor::MACHINE_LOCK;

use crate::Error;

/// Opens a file for appending, made 0600 if it is not there.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

/// Takes the lock that says a machine of the workspace in `directory` runs. It goes with the
/// returned file, however this process ends.
pub(crate) fn lock_machine(directory: &Path) -> Result<File, Error> {
    let path = directory.join(MACHINE_LOCK);
    let file = append(&path).map_err(Error::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Running {
            directory: directory.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::file("lock", &path)(error)),
    }
}

/// Whether a change must survive a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Synced,
    Unsynced,
}

/// Replaces `path` by `bytes`: temp, fsync, rename, fsync of the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), Error> {
    put(path, bytes, durability)?;
    if durability == Durability::Synced {
        sync_parent(path)?;
    }
    Ok(())
}

/// The same, on stable storage, for a file that is appended to: gives the new one.
pub(crate) fn replace_and_keep(path: &Path, bytes: &[u8]) -> Result<File, Error> {
    let file = put(path, bytes, Durability::Synced)?;
    if let Err(error) = sync_parent(path) {
        // The new one has its name already; a crash may bring back the old one, which is whole, too.
        tracing::warn!("{error}");
    }
    Ok(file)
}

fn temporary(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// Removes what a supervisor left of a new `path` that was killed: there is one per workspace.
pub(crate) fn remove_temporary(path: &Path) -> Result<(), Error> {
    let temp = temporary(path);
    match std::fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", temp)(error))
        }
        _ => Ok(()),
    }
}

fn put(path: &Path, bytes: &[u8], durability: Durability) -> Result<File, Error> {
    let temp = &temporary(path);
    remove_temporary(path)?;
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(temp)
        .map_err(Error::file("create", temp))?;
    file.write_all(bytes)
        .and_then(|()| match durability {
            Durability::Synced => file.sync_all(),
            Durability::Unsynced => Ok(()),
        })
        .map_err(Error::file("write", temp))?;
    std::fs::rename(temp, path).map_err(Error::file("replace", path))?;
    Ok(file)
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::file("sync", parent)),
        None => Ok(()),
    }
}
