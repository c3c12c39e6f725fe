//! Layers on their way: kept until they are published, so that a pull that was interrupted goes on later.
//!
//! A file here is named by the digest it is to have, and counts for nothing until its content was hashed.
//! One download at a time holds its lock; an abandoned one is removed after a while, or when somebody
//! wants the space.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_host::fs::file_id;
use microagent_host::lock::{Lock, Sharing};

use super::files;
use super::{ImageStore, Transaction};
use crate::digest::Digest;
use crate::error::{IoContext, Result};

/// How long a download that nobody goes on with is kept.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A layer on its way, locked for as long as this value lives.
pub(crate) struct Partial {
    lock: Lock,
    pub(crate) path: PathBuf,
}

impl ImageStore {
    /// The file that `digest` is downloaded into. Waits, after a call of `waiting`, while another
    /// download of it is under way.
    pub(crate) fn partial(
        &self,
        _transaction: &Transaction,
        digest: Digest,
        waiting: &dyn Fn(),
    ) -> Result<Partial> {
        let path = directory(self.root()).join(digest.hex());
        loop {
            let file = files::lock_file(&path)?;
            let lock = Lock::wait(file, Sharing::Exclusive, waiting).context("lock", &path)?;
            // Whoever held it may have published or removed it: then this is another file's lock.
            if is_at(lock.file(), &path)? {
                return Ok(Partial { lock, path });
            }
        }
    }

    /// How much of `digest` was left by an earlier download.
    pub(crate) fn partial_bytes(&self, digest: Digest) -> u64 {
        fs::symlink_metadata(directory(self.root()).join(digest.hex()))
            .map_or(0, |metadata| metadata.len())
    }
}

impl Partial {
    /// What is there of it.
    pub(crate) const fn file(&self) -> &File {
        self.lock.file()
    }

    /// Removes what is there, if nothing of it is of use.
    pub(crate) fn discard(self) -> Result<()> {
        files::remove_file(&self.path)?;
        Ok(())
    }
}

pub(super) fn directory(root: &Path) -> PathBuf {
    root.join("partial")
}

fn is_at(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().context("look at", path)?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(file_id(&held) == file_id(&there)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("look at", path),
    }
}

/// Downloads that nobody goes on with, of an age that `is_old`. The caller holds the exclusive activity
/// lock, so none is under way.
pub(super) fn abandoned(root: &Path, is_old: &dyn Fn(Duration) -> bool) -> Result<Vec<PathBuf>> {
    let mut paths = files::entries(&directory(root))?;
    paths.retain(|path| {
        let changed = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
        // What was changed in the future is as young as it gets.
        is_old(changed.map_or(Duration::ZERO, |changed| {
            changed.elapsed().unwrap_or_default()
        }))
    });
    Ok(paths)
}

/// Removes them.
pub(super) fn sweep(root: &Path, is_old: &dyn Fn(Duration) -> bool) -> Result<()> {
    for path in abandoned(root, is_old)? {
        files::remove_file(&path)?;
    }
    Ok(())
}
