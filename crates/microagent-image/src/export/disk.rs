//! The merged root of an image as one ext4 file of the caller's.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ImageStore;
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::store::{ImageRecord, build_to};

/// A disk that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RootDisk {
    /// Where it is.
    pub path: PathBuf,
    /// The digest of the whole file.
    pub sha256: Digest,
    /// Its length in bytes (it is sparse).
    pub size_bytes: u64,
}

impl ImageStore {
    /// Writes an image's root file system as an ext4 file at `path`, replacing what is there once it is complete.
    /// Equal images give equal bytes. Without a size the disk is as small as it can be, without a journal and read-only
    /// (mode 0444); with one it is that large, has a journal, and is its owner's to write to (0600).
    ///
    /// # Errors
    /// [`ImageError::CannotExport`] for a size that is no disk's, [`ImageError::Disk`] when a layer is refused or the
    /// size is too small.
    pub fn write_disk(
        &self,
        record: &ImageRecord,
        path: &Path,
        size_bytes: Option<u64>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<RootDisk> {
        if path.is_dir() {
            return Err(ImageError::CannotExport {
                what: path.display().to_string(),
                reason: "it is a directory; name a file".into(),
            });
        }
        // While it lives, nothing of the store is reclaimed.
        let _transaction = self.begin()?;
        let layers = self.layer_sources(record)?;
        build_to(
            &record.reference.to_string(),
            layers,
            path,
            size_bytes,
            events,
        )?;
        let file = File::open(path).context("open", path)?;
        let size_bytes = file.metadata().context("look at", path)?.len();
        Ok(RootDisk {
            path: path.to_owned(),
            sha256: Digest::of_reader(file).context("read", path)?,
            size_bytes,
        })
    }
}
