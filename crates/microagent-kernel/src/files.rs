//! Private files that are either there completely or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use microagent_host::fs::{Private, sync_dir};
use microagent_host::lock::{Lock, Sharing};

use crate::error::{IoContext, KernelError, Result};

/// How long to wait for another process that installs a kernel: long enough for its download.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1200);
/// Prefix of everything unfinished; whoever holds the lock may remove it.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Creates a directory only its owner can enter.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .private()
        .create(path)
        .context("create", path)
}

/// As [`create_directory`], with missing parents, and content if it is there.
pub(crate) fn ensure_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .private()
        .recursive(true)
        .create(path)
        .context("create", path)
}

/// Writes a file that must not exist yet, down to the disk.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .private()
        .open(path)
        .context("create", path)?;
    file.write_all(bytes).context("write", path)?;
    file.sync_all().context("sync", path)
}

/// Replaces a file in one step. The caller holds the store's lock.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(parent)
        .context("create a file in", parent)?;
    file.write_all(bytes).context("write", path)?;
    file.as_file().sync_all().context("sync", path)?;
    file.persist(path)
        .map_err(|e| e.error)
        .context("create", path)?;
    sync_directory(parent)
}

/// Makes the names in a directory last.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    sync_dir(path).context("sync", path)
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).context("open", path)?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .context("read", path)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge)).context("read", path);
    }
    Ok(bytes)
}

/// Removes what a killed process left in `directory`. The caller holds the store's lock, so nobody is using it.
pub(crate) fn remove_temporaries(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).context("list", directory)? {
        let entry = entry.context("list", directory)?;
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TEMPORARY.as_bytes())
        {
            continue;
        }
        let path = entry.path();
        if entry.file_type().context("inspect", &path)?.is_dir() {
            fs::remove_dir_all(&path).context("remove", &path)?;
        } else {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// The store's lock, held until dropped; the kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct StoreLock(#[expect(dead_code, reason = "held, not looked at")] Lock);

impl StoreLock {
    /// Waits for the lock in `directory`; `waiting` is called once if it is taken.
    pub(crate) fn take(directory: &Path, waiting: impl FnOnce()) -> Result<Self> {
        let path = directory.join(".lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .private()
            .open(&path)
            .context("open", &path)?;
        Lock::within(file, Sharing::Exclusive, LOCK_TIMEOUT, waiting)
            .context("lock", &path)?
            .map(Self)
            .ok_or_else(|| KernelError::Busy {
                path: directory.to_owned(),
                after: LOCK_TIMEOUT,
            })
    }
}
