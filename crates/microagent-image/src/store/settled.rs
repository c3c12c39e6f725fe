//! Whether what can be made again is on stable storage.
//!
//! Layers are synced before a pull returns; pieces and fronts of disks, which are made of them, are not: a note
//! says in which boot of the host they were written. As long as it runs, what was written is what is read. In any
//! later boot they are hashed before they count for anything, and made again if a crash took a part of them.
//! What a workspace is made of is synced when the workspace is made ([`ImageStore::settle`]).

use std::fs::File;
use std::path::Path;

use super::pieces::diff_id_of;
use super::{BaseDisk, ImageStore};
use crate::digest::Digest;
use crate::disk::ChunkSums;
use crate::error::{IoContext, Result};

/// The host's present boot; `None` where it does not say, and then everything is synced at once.
pub(super) fn this_boot() -> Option<String> {
    microagent_host::process::boot_id().ok()
}

/// What a note is to say of files that were just written: synced here where no boot could be told from another.
pub(super) fn written_now(files: &[&Path]) -> Result<Option<String>> {
    let boot = this_boot();
    if boot.is_none() {
        files.iter().try_for_each(|path| sync(path))?;
    }
    Ok(boot)
}

/// Whether a file that was written in `boot` is what its sums were then.
pub(super) fn is_whole(path: &Path, sums: Digest) -> bool {
    File::open(path)
        .and_then(|file| ChunkSums::against(&sums, &file, path))
        .is_ok_and(|found| found.digest() == sums)
}

pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .context("sync", path)
}

impl ImageStore {
    /// Puts a base disk on stable storage, where it is not known to be there: what is made of it is to be there
    /// after a crash of the host, too.
    ///
    /// # Errors
    /// When its files cannot be synced.
    pub fn settle(&self, disk: &BaseDisk) -> Result<()> {
        let Some(note) = self.unsettled(&disk.path)? else {
            return Ok(());
        };
        // No sweep is to take a note that is being written.
        let _hold = self.hold()?;
        for path in self.listed_pieces(&disk.path)? {
            self.settle_piece(&path)?;
        }
        sync(&disk.path.with_extension("front"))?;
        self.settled(note)
    }

    fn settle_piece(&self, path: &Path) -> Result<()> {
        match diff_id_of(path) {
            Some(diff_id) => self.settle_layer(diff_id),
            None => sync(path),
        }
    }
}
