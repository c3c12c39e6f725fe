//! Base disks: for each image one read-only ext4, built once, shared by all, never removed under a user.
//!
//! A disk is a list of files ([`DiskList`]): the pieces of its layers, which images share, and a front of its own.
//! Its digest is that of the list, which names the digest of every file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use microagent_disk::{DiskList, EXTENSION, JoinedFile, MAX_LIST};
use microagent_host::fs as host;
use microagent_host::lock::{Lock, Sharing};
use serde::{Deserialize, Serialize};

use super::files::{self, Transaction};
use super::{ImageRecord, ImageStore, pieces, settled};
use crate::digest::Digest;
use crate::disk::{
    self, BuildOptions, BuildProgress, ChunkSums, FORMAT_VERSION as FORMAT, Join, LayerSource,
    Piece,
};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::Layer;

pub(super) const MAX_NOTE: u64 = 64 << 10;
/// What a front ends in.
const FRONT: &str = "front";
/// An image of more layers gets a disk of one file: who boots from it has descriptors for so many files.
const MAX_PIECES: usize = 256;

/// An image's base disk, kept from being removed for as long as this value lives.
#[derive(Debug)]
pub struct BaseDisk {
    /// The list of the files that it is made of ([`DiskList`]), beside which they lie. Only ever open them for
    /// reading: images share them.
    pub path: PathBuf,
    /// Its digest: that of the list, which names the digests of the files. That of a file is of its
    /// [`ChunkSums`], which stand beside it in a file of the same name that ends in `.sums`.
    pub digest: Digest,
    /// The size of the disk in bytes.
    pub size_bytes: u64,
    /// Keeps the disk; hand it on, or take another with [`BaseDiskGuard::hold`] in the process that
    /// runs the machine.
    pub guard: BaseDiskGuard,
}

impl BaseDisk {
    /// The disk as one file, for programs that read no list: made beside it at the first call.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn flat(&self) -> Result<PathBuf> {
        JoinedFile::open(&self.path)
            .and_then(|joined| joined.flat(&self.path))
            .context("make one file of the base disk", &self.path)
    }
}

/// A shared lock on a base disk: while one lives, in any process, the store does not remove the disk.
#[derive(Debug)]
pub struct BaseDiskGuard(#[expect(dead_code, reason = "held, not looked at")] Lock);

impl BaseDiskGuard {
    /// Holds the disk at `path`.
    ///
    /// # Errors
    /// When there is no disk (any more): build it with [`ImageStore::base_disk`].
    pub fn hold(path: &Path) -> Result<Self> {
        let file = File::open(path).context("open the base disk", path)?;
        let lock = Lock::wait(file, Sharing::Shared, || ()).context("lock the base disk", path)?;
        // It may have been removed between the two calls: then the lock is on a file nobody finds.
        if host::names(&lock.file().metadata().context("look at", path)?) == 0 {
            return Err(io::Error::from(io::ErrorKind::NotFound))
                .context("lock the base disk", path);
        }
        Ok(Self(lock))
    }
}

/// What is recorded beside a disk.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    format: u32,
    pub(super) manifest: Digest,
    /// Of the list.
    pub(super) list: Digest,
    size_bytes: u64,
    /// What made it; not recorded before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    converter: Option<String>,
    /// The boot in which it was written, as long as it is not known to be on stable storage, with all its pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
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
            boot: self.boot.clone(),
            ..*self
        };
        Digest::of(&open.json()) == seal
    }

    fn json(&self) -> Vec<u8> {
        // Numbers, digests and a word: there is nothing here JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A disk that is complete but not in its place.
pub(crate) struct StagedDisk {
    list: DiskList,
    front: PathBuf,
    sums: ChunkSums,
}

impl StagedDisk {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.list.size_bytes()
    }
}

/// A file of a disk, and the digest that was recorded of it.
pub(super) struct RecordedFile {
    pub(super) path: PathBuf,
    pub(super) recorded: Option<Digest>,
}

/// What makes disks, as it is recorded with them.
pub(super) const CONVERTER: &str = concat!("microagent ", env!("CARGO_PKG_VERSION"));

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
        let layers = self.layer_sources(record)?;
        let name = record.reference.to_string();
        let staged = self.build_disk(&transaction, &name, record.digest, layers, events)?;
        self.publish_disk(&transaction, record.digest, &staged)?;
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

    /// Builds the disk of the image `digest`: converts the layers that no image had before, and merges.
    pub(crate) fn build_disk(
        &self,
        transaction: &Transaction,
        name: &str,
        digest: Digest,
        layers: Vec<LayerSource>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<StagedDisk> {
        let _span = tracing::info_span!("build", image = name).entered();
        let front = transaction.path(&file_name(digest, FRONT));
        let failed = |source| ImageError::Disk {
            image: name.to_owned(),
            source: Box::new(source),
        };
        let options = BuildOptions::default();
        if layers.len() > MAX_PIECES {
            let mut progress = telling(name, events);
            let built = disk::build(layers, &front, &options, &mut progress).map_err(failed)?;
            let mut list = DiskList::new();
            let sums = built.sums.digest().hex();
            if !list.push(&file_name(digest, FRONT), &sums, 0, built.size_bytes) {
                let reason = "its disk has a strange size".to_owned();
                return Err(failed(disk::DiskError::Layout(reason)));
            }
            let sums = built.sums;
            return Ok(StagedDisk { list, front, sums });
        }
        let mut join = Join::new(&options.limits);
        let mut take = |label: &str, piece: &Piece| join.add(label, piece).map_err(failed);
        self.pieces(transaction, name, layers, events, &mut take)?;
        finish(join, transaction, name, digest, events)
    }

    /// Merges converted layers to the disk of the image `digest`.
    pub(crate) fn join_pieces(
        &self,
        transaction: &Transaction,
        name: &str,
        digest: Digest,
        pieces: &[(String, Piece)],
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<StagedDisk> {
        let options = BuildOptions::default();
        let mut join = Join::new(&options.limits);
        for (label, piece) in pieces {
            join.add(label, piece).map_err(|source| ImageError::Disk {
                image: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        finish(join, transaction, name, digest, events)
    }

    /// Moves a built disk to its place, its list last, so that it is never without the rest.
    pub(crate) fn publish_disk(
        &self,
        transaction: &Transaction,
        digest: Digest,
        staged: &StagedDisk,
    ) -> Result<()> {
        let text = staged.list.text();
        let note = Note {
            format: FORMAT,
            manifest: digest,
            list: Digest::of(text.as_bytes()),
            size_bytes: staged.size_bytes(),
            converter: Some(CONVERTER.to_owned()),
            boot: settled::written_now(&[&staged.front])?,
            seal: None,
        };
        let json = note.sealed().json();
        let path = self.disk_path(digest);
        files::replace(&path.with_extension("sums"), staged.sums.text().as_bytes())?;
        files::replace(&self.disk_note_path(digest), &json)?;
        let front = path.with_extension(FRONT);
        fs::rename(&staged.front, &front).context("publish", &front)?;
        let list = transaction.path("list");
        files::replace(&list, text.as_bytes())?;
        File::open(&list)
            .and_then(|file| host::set_mode(&file, 0o400))
            .context("set the mode of", &list)?;
        fs::rename(&list, &path).context("publish", &path)?;
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
        // A disk that is not what its note says is no disk: it is built again and replaced.
        let found = self.list_at(&path)?;
        let Some((note, (_, list))) = note
            .zip(found)
            .filter(|(note, (digest, list))| note.list == *digest && self.has_files(list))
        else {
            tracing::warn!(path = %path.display(), "base disk that is not as noted");
            return Ok(None);
        };
        if note.boot.is_some() && note.boot != settled::this_boot() {
            if !self.outlived(&path, &list)? {
                tracing::warn!(path = %path.display(), "base disk that a crash took a part of");
                return Ok(None);
            }
            self.noted(self.settled(note.clone()));
        }
        // Only a display depends on this time, so a read-only store is no error.
        if let Err(error) =
            File::open(&note_path).and_then(|file| file.set_modified(SystemTime::now()))
        {
            tracing::debug!(%error, "cannot note the use of a base disk");
        }
        Ok(Some(BaseDisk {
            path,
            digest: note.list,
            size_bytes: note.size_bytes,
            guard,
        }))
    }

    /// Without the note it is only looked at again.
    #[expect(clippy::unused_self, reason = "reads as a sentence at its callers")]
    pub(super) fn noted(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "cannot note what is on stable storage");
        }
    }

    /// Whether a disk that was written in another boot is what it was then, with all its pieces.
    fn outlived(&self, path: &Path, list: &DiskList) -> Result<bool> {
        for piece in self.listed_pieces(path)? {
            let Some(diff_id) = pieces::diff_id_of(&piece) else {
                return Ok(false);
            };
            if self.existing_piece(diff_id)?.is_none() {
                return Ok(false);
            }
        }
        let front = path.with_extension(FRONT);
        let of_front = list
            .files()
            .iter()
            .find(|file| self.disks().join(&file.name) == front)
            .and_then(|file| Digest::from_hex(&file.digest));
        Ok(of_front.is_some_and(|sums| settled::is_whole(&front, sums)))
    }

    /// The note of the disk at `path`, if that is not known to be on stable storage.
    pub(super) fn unsettled(&self, path: &Path) -> Result<Option<Note>> {
        let bytes = files::read_bounded(&path.with_extension("json"), MAX_NOTE)?;
        Ok(bytes
            .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok())
            .filter(|note| note.is_whole() && note.boot.is_some()))
    }

    /// Records that a disk is on stable storage.
    pub(super) fn settled(&self, note: Note) -> Result<()> {
        let path = self.disk_note_path(note.manifest);
        let note = Note { boot: None, ..note };
        files::replace(&path, &note.sealed().json())
    }

    /// The list at `path` and its digest, if it can be understood.
    fn list_at(&self, path: &Path) -> Result<Option<(Digest, DiskList)>> {
        let bytes = files::read_bounded(path, MAX_LIST)?.unwrap_or_default();
        let list = std::str::from_utf8(&bytes).ok().and_then(DiskList::parse);
        Ok(list.map(|list| (Digest::of(&bytes), list)))
    }

    /// Whether the files of a disk are there and long enough.
    fn has_files(&self, list: &DiskList) -> bool {
        list.runs().iter().all(|run| {
            let path = self.disks().join(&list.files()[run.file].name);
            fs::metadata(path).is_ok_and(|it| it.len() >= run.offset + run.length)
        })
    }

    /// The files of an image's disk in today's format, there or not, without those it shares: whoever counts,
    /// checks or removes disks asks here.
    pub(super) fn disk_files(&self, digest: Digest) -> Vec<PathBuf> {
        let path = self.disk_path(digest);
        own_files(&path).chain([path.clone()]).collect()
    }

    /// The pieces of the disk whose list is at `path`; none where there is no list, or a disk in one file.
    pub(super) fn listed_pieces(&self, path: &Path) -> Result<Vec<PathBuf>> {
        if !microagent_disk::is_list(path) {
            return Ok(Vec::new());
        }
        let Some((_, list)) = self.list_at(path)? else {
            return Ok(Vec::new());
        };
        let pieces = list
            .files()
            .iter()
            .map(|file| self.disks().join(&file.name));
        Ok(pieces
            .filter(|path| path.extension().is_some_and(|it| it == pieces::PIECE))
            .collect())
    }

    /// The files of an image's disk in today's format, as they were recorded; none where there is no disk.
    pub(super) fn recorded_files(&self, digest: Digest) -> Result<Vec<RecordedFile>> {
        let path = self.disk_path(digest);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let recorded = self.note(digest)?.map(|note| note.list);
        // A list that is not the recorded one says nothing about files.
        let listed = self
            .list_at(&path)?
            .filter(|(digest, _)| recorded == Some(*digest))
            .map(|(_, list)| list)
            .unwrap_or_default();
        let of_files = listed.files().iter().map(|file| RecordedFile {
            path: self.disks().join(&file.name),
            recorded: Digest::from_hex(&file.digest),
        });
        Ok([RecordedFile { path, recorded }]
            .into_iter()
            .chain(of_files)
            .collect())
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
        self.disks().join(file_name(digest, EXTENSION))
    }

    pub(super) fn disk_note_path(&self, digest: Digest) -> PathBuf {
        self.disks().join(file_name(digest, "json"))
    }
}

/// All layers of the image `digest` are merged: writes what is the disk's own.
fn finish(
    join: Join<'_>,
    transaction: &Transaction,
    name: &str,
    digest: Digest,
    events: &(dyn Fn(ImageEvent) + Sync),
) -> Result<StagedDisk> {
    let _span = tracing::info_span!("disk", image = name).entered();
    let front = transaction.path(&file_name(digest, FRONT));
    events(ImageEvent::BuildingDisk {
        reference: name.to_owned(),
        bytes: join.stream_bytes(),
        finishing: true,
    });
    let joined = join.finish(&front).map_err(|source| ImageError::Disk {
        image: name.to_owned(),
        source: Box::new(source),
    })?;
    Ok(StagedDisk {
        list: joined.list,
        front,
        sums: joined.sums,
    })
}

fn file_name(digest: Digest, what: &str) -> String {
    format!("{}.{FORMAT}.{what}", digest.hex())
}

/// What belongs to the disk with this list alone, and goes with it, there or not: its front, sums and note, and what
/// others made of it.
pub(super) fn own_files(path: &Path) -> impl Iterator<Item = PathBuf> {
    let beside = [FRONT, "sums", "json"].map(|what| path.with_extension(what));
    beside.into_iter().chain(JoinedFile::flat_files(path))
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
        label: format!("{} of {count} ({})", at + 1, layer.digest.short()),
        reader,
        compression: layer.compression.into(),
        diff_id: Some(*diff_id.as_bytes()),
    }
}

/// Builds a disk of the caller's own, of a given size if there is one.
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
