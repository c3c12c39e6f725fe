//! Base disks: one read-only ext4 file per image, built once, shared by all, never removed under a user.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::files::{self, Transaction};
use super::{ImageRecord, ImageStore};
use crate::digest::Digest;
use crate::disk::{
    self, BuildOptions, BuildProgress, BuiltDisk, FORMAT_VERSION as FORMAT, LayerSource,
};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::Layer;

pub(super) const MAX_NOTE: u64 = 64 << 10;

/// An image's base disk, kept from being removed for as long as this value lives.
#[derive(Debug)]
pub struct BaseDisk {
    /// The ext4 file. Only ever open it for reading.
    pub path: PathBuf,
    /// Its digest, recorded when it was built: that of its [`ChunkSums`](crate::disk::ChunkSums), which stand
    /// beside it in a file of the same name that ends in `.sums`.
    pub digest: Digest,
    /// Its length in bytes (it is sparse).
    pub size_bytes: u64,
    /// Keeps the disk; hand it on, or take another with [`BaseDiskGuard::hold`] in the process that
    /// runs the machine.
    pub guard: BaseDiskGuard,
}

/// A shared lock on a base disk: while one lives, in any process, the store does not remove the disk.
#[derive(Debug)]
pub struct BaseDiskGuard {
    _file: File,
}

impl BaseDiskGuard {
    /// Holds the disk at `path`.
    ///
    /// # Errors
    /// When there is no disk (any more): build it with [`ImageStore::base_disk`].
    pub fn hold(path: &Path) -> Result<Self> {
        let file = File::open(path).context("open the base disk", path)?;
        file.lock_shared().context("lock the base disk", path)?;
        // It may have been removed between the two calls: then the lock is on a file nobody finds.
        if file.metadata().context("look at", path)?.nlink() == 0 {
            return Err(io::Error::from(io::ErrorKind::NotFound))
                .context("lock the base disk", path);
        }
        Ok(Self { _file: file })
    }
}

/// What is recorded beside a disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    format: u32,
    pub(super) manifest: Digest,
    /// Of the sums. A note without is of a time when disks were hashed in one piece: the disk is built again.
    pub(super) sums: Digest,
    size_bytes: u64,
    /// What made it; not recorded before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    converter: Option<String>,
    /// Of all of the above, so that no byte of it changes unseen; not recorded before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<Digest>,
}

impl Note {
    fn sealed(mut self) -> Self {
        self.seal = None;
        self.seal = Some(Digest::of(&self.json()));
        self
    }

    /// Whether it is as it was written.
    pub(super) fn is_whole(&self) -> bool {
        let Some(seal) = self.seal else { return true };
        let open = Self {
            seal: None,
            converter: self.converter.clone(),
            ..*self
        };
        Digest::of(&open.json()) == seal
    }

    fn json(&self) -> Vec<u8> {
        // Numbers, digests and a word: there is nothing here JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A disk, and the digest (of its sums) and length that were recorded of it.
pub(super) struct RecordedDisk {
    pub(super) path: PathBuf,
    pub(super) recorded: Option<(Digest, u64)>,
}

/// What makes disks, as it is recorded with them.
const CONVERTER: &str = concat!("microagent ", env!("CARGO_PKG_VERSION"));

impl ImageStore {
    /// The image's base disk; built first where there is none, by one process while others wait.
    ///
    /// # Errors
    /// [`ImageError::Disk`] when a layer is refused, [`ImageError::Damaged`] when a layer is missing.
    pub fn base_disk(
        &self,
        record: &ImageRecord,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<BaseDisk> {
        let ready = |disk: BaseDisk, existed| {
            events(ImageEvent::DiskReady {
                digest: record.digest,
                bytes: disk.size_bytes,
                existed,
            });
            disk
        };
        if let Some(disk) = self.existing_disk(record.digest)? {
            return Ok(ready(disk, true));
        }
        let transaction = self.begin()?;
        let _lock = self.lock_image(&transaction, record.digest, events)?;
        if let Some(disk) = self.existing_disk(record.digest)? {
            return Ok(ready(disk, true));
        }
        let staged = transaction.path("disk.ext4");
        let layers = self.layer_sources(record)?;
        let built = build(&record.reference.to_string(), layers, &staged, events)?;
        self.publish_disk(&transaction, record.digest, &staged, &built)?;
        match self.existing_disk(record.digest)? {
            Some(disk) => Ok(ready(disk, false)),
            None => Err(ImageError::Damaged {
                path: self.disk_path(record.digest),
                reason: "vanished as soon as it was built".into(),
                remedy: "Find out what else writes there, then try again.",
            }),
        }
    }

    pub(crate) fn layer_sources(&self, record: &ImageRecord) -> Result<Vec<LayerSource>> {
        let config = self.config(record)?;
        let count = record.layers.len();
        record
            .layers
            .iter()
            .zip(&config.diff_ids)
            .enumerate()
            .map(|(at, (layer, diff_id))| {
                let path = self.blob_path(layer.digest);
                let file = File::open(&path).context("open the layer", &path)?;
                Ok(layer_source(at, count, layer, *diff_id, Box::new(file)))
            })
            .collect()
    }

    /// Moves a built disk, synced and read-only as the builder left it, to its place: its sums and note first, so that it is never without them.
    pub(crate) fn publish_disk(
        &self,
        _transaction: &Transaction,
        digest: Digest,
        staged: &Path,
        built: &BuiltDisk,
    ) -> Result<()> {
        let note = Note {
            format: FORMAT,
            manifest: digest,
            sums: built.sums.digest(),
            size_bytes: built.size_bytes,
            converter: Some(CONVERTER.to_owned()),
            seal: None,
        };
        let json = note.sealed().json();
        let sums = self.disk_path(digest).with_extension("sums");
        files::replace(&sums, built.sums.text().as_bytes())?;
        files::replace(&self.disk_note_path(digest), &json)?;
        let path = self.disk_path(digest);
        fs::set_permissions(staged, fs::Permissions::from_mode(0o400))
            .context("protect", staged)?;
        fs::rename(staged, &path).context("publish", &path)?;
        files::sync_dir(&self.disks())
    }

    /// The disk and its guard, where it is there and whole; also notes that it was used.
    pub(crate) fn existing_disk(&self, digest: Digest) -> Result<Option<BaseDisk>> {
        let path = self.disk_path(digest);
        let guard = match BaseDiskGuard::hold(&path) {
            Ok(guard) => guard,
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let note_path = self.disk_note_path(digest);
        let note = self.note(digest)?;
        let length = fs::metadata(&path).context("look at", &path)?.len();
        // A disk that is not what its note says is no disk: it is built again and replaced.
        let Some(note) = note.filter(|note| note.size_bytes == length) else {
            tracing::warn!(path = %path.display(), "base disk without a matching note");
            return Ok(None);
        };
        // Only a display depends on this time, so a read-only store is no error.
        if let Err(error) =
            File::open(&note_path).and_then(|file| file.set_modified(SystemTime::now()))
        {
            tracing::debug!(%error, "cannot note the use of a base disk");
        }
        Ok(Some(BaseDisk {
            path,
            digest: note.sums,
            size_bytes: note.size_bytes,
            guard,
        }))
    }

    /// The files of an image's disk in today's format, there or not: whoever counts, checks or removes
    /// disks asks here.
    pub(super) fn disk_files(&self, digest: Digest) -> Vec<PathBuf> {
        let path = self.disk_path(digest);
        vec![
            path.with_extension("sums"),
            self.disk_note_path(digest),
            path,
        ]
    }

    /// The disks of an image in today's format that are there, as they were recorded.
    pub(super) fn recorded_disks(&self, digest: Digest) -> Result<Vec<RecordedDisk>> {
        let path = self.disk_path(digest);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let recorded = self.note(digest)?.map(|note| (note.sums, note.size_bytes));
        Ok(vec![RecordedDisk { path, recorded }])
    }

    /// What made the image's disk, where that was recorded, and the format of it.
    pub(super) fn disk_origin(&self, digest: Digest) -> (Option<String>, u32) {
        // A note that cannot be read records nothing.
        let note = self.note(digest).ok().flatten();
        (note.and_then(|note| note.converter), FORMAT)
    }

    /// What is recorded of an image's disk, if it can be understood.
    fn note(&self, digest: Digest) -> Result<Option<Note>> {
        let bytes = files::read_bounded(&self.disk_note_path(digest), MAX_NOTE)?;
        Ok(bytes
            .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok())
            .filter(|note| note.manifest == digest && note.is_whole()))
    }

    pub(super) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn disk_path(&self, digest: Digest) -> PathBuf {
        self.disks().join(format!("{}.{FORMAT}.ext4", digest.hex()))
    }

    pub(super) fn disk_note_path(&self, digest: Digest) -> PathBuf {
        self.disks().join(format!("{}.{FORMAT}.json", digest.hex()))
    }
}

/// A layer of an image, `at` from 0 of `count`, as the builder wants it.
pub(crate) fn layer_source(
    at: usize,
    count: usize,
    layer: &Layer,
    diff_id: Digest,
    reader: Box<dyn Read + Send>,
) -> LayerSource {
    LayerSource {
        label: format!("layer {} of {count} ({})", at + 1, layer.digest.short()),
        reader,
        compression: layer.compression.into(),
        diff_id: Some(*diff_id.as_bytes()),
    }
}

/// Runs the builder and tells of its progress.
pub(crate) fn build(
    image: &str,
    layers: Vec<LayerSource>,
    staged: &Path,
    events: &dyn Fn(ImageEvent),
) -> Result<BuiltDisk> {
    let mut progress = telling(image, events);
    disk::build(layers, staged, &BuildOptions::default(), &mut progress).map_err(|source| {
        ImageError::Disk {
            image: image.to_owned(),
            source: Box::new(source),
        }
    })
}

/// The same for a disk of the caller's own, of a given size if there is one.
pub(crate) fn build_to(
    image: &str,
    layers: Vec<LayerSource>,
    path: &Path,
    size_bytes: Option<u64>,
    events: &dyn Fn(ImageEvent),
) -> Result<()> {
    let mut progress = telling(image, events);
    let options = BuildOptions::default();
    let built = match size_bytes {
        Some(size) => disk::build_sized(layers, path, size, &options, &mut progress),
        None => disk::build(layers, path, &options, &mut progress).map(drop),
    };
    built.map_err(|source| ImageError::Disk {
        image: image.to_owned(),
        source: Box::new(source),
    })
}

/// Makes events of a builder's progress.
fn telling<'e>(
    image: &'e str,
    events: &'e dyn Fn(ImageEvent),
) -> impl FnMut(BuildProgress<'_>) + 'e {
    let mut so_far = 0;
    move |progress: BuildProgress<'_>| {
        let finishing = match progress {
            BuildProgress::Bytes(bytes) => {
                so_far = bytes;
                false
            }
            BuildProgress::Finishing => true,
            BuildProgress::Layer { .. } => false,
        };
        events(ImageEvent::BuildingDisk {
            reference: image.to_owned(),
            bytes: so_far,
            finishing,
        });
    }
}
