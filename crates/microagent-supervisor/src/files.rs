//! Private files: mode 0600 from birth, replaced whole or not at all.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_host::lock::{Lock, Sharing};
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

/// How long the lock of a machine is tried for: who asks whether one lives shares it for an instant.
const LOCK_LIMIT: Duration = Duration::from_millis(100);

/// Takes the lock that says a machine of the workspace in `directory` runs.
pub(crate) fn lock_machine(directory: &Path) -> Result<Lock, Error> {
    lock_machine_within(directory, LOCK_LIMIT)
}

fn lock_machine_within(directory: &Path, limit: Duration) -> Result<Lock, Error> {
    let path = directory.join(MACHINE_LOCK);
    let file = append(&path).map_err(Error::file("open", &path))?;
    let lock = Lock::within(file, Sharing::Exclusive, limit, || ())
        .map_err(Error::file("lock", &path))?
        .ok_or_else(|| Error::Running {
            directory: directory.to_owned(),
        })?;
    // Whoever had it may have removed the workspace, and the file with it.
    let looked = Error::file("look at", &path);
    let of = |about: Metadata| (about.dev(), about.ino());
    match (
        lock.file().metadata().map(of),
        path.symlink_metadata().map(of),
    ) {
        (Ok(locked), Ok(named)) if locked == named => Ok(lock),
        (Err(error), _) | (_, Err(error)) => Err(looked(error)),
        _ => Err(looked(io::ErrorKind::NotFound.into())),
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

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    const PATIENT: Duration = Duration::from_secs(20);

    fn look_at(directory: &Path) -> Lock {
        let file = append(&directory.join(MACHINE_LOCK)).unwrap();
        Lock::now(file, Sharing::Shared).unwrap().unwrap()
    }

    #[test]
    fn the_lock_of_a_machine_waits_for_who_only_looks() {
        let directory = tempfile::tempdir().unwrap();
        let looking = look_at(directory.path());
        let found = thread::scope(|scope| {
            let locked = scope.spawn(|| lock_machine_within(directory.path(), PATIENT));
            thread::sleep(Duration::from_millis(20));
            drop(looking);
            locked.join().unwrap()
        });
        let _first = found.unwrap();
        let second = lock_machine_within(directory.path(), Duration::ZERO).unwrap_err();
        assert!(matches!(second, Error::Running { .. }), "{second}");
    }

    #[test]
    fn no_machine_begins_in_a_workspace_that_was_removed_meanwhile() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("ws");
        fs::create_dir(&directory).unwrap();
        let removing = look_at(&directory);
        let found = thread::scope(|scope| {
            let locked = scope.spawn(|| lock_machine_within(&directory, PATIENT));
            thread::sleep(Duration::from_millis(20));
            fs::rename(&directory, root.path().join("trash")).unwrap();
            drop(removing);
            locked.join().unwrap()
        });
        let error = found.unwrap_err();
        assert!(error.to_string().contains("machine.lock"), "{error}");
    }
}
