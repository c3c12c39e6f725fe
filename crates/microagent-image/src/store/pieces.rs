//! Converted layers: each layer's content and index, made once, for every image that has the layer.
//!
//! A piece is named by the digest of its layer's uncompressed bytes, which say all that is in it; so whose layer it
//! was does not matter. It is kept as long as an image or a disk names it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::disks::CONVERTER;
use super::files::{self, Transaction};
use super::{ImageStore, settled};
use crate::digest::Digest;
use crate::disk::{
    self, BuildOptions, ChunkSums, Compression, FORMAT_VERSION as FORMAT, LayerSource, Piece,
};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;

const MAX_NOTE: u64 = 64 << 10;
/// What a piece's content file ends in.
pub(super) const PIECE: &str = "piece";
/// Its index, its sums, its note.
pub(super) const BESIDE: [&str; 3] = ["index", "sums", "json"];
/// Layers that are converted at once: each takes three threads and some 10 MiB.
const AT_ONCE: usize = 2;

/// What is recorded beside a piece.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    diff_id: Digest,
    size_bytes: u64,
    sums: Digest,
    index: Digest,
    stream_bytes: u64,
    converter: String,
    /// The boot in which it was written, as long as it is not known to be on stable storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    /// Of all of the above, so that no byte of it changes unseen.
    seal: Option<Digest>,
}

impl Note {
    fn sealed(mut self) -> Self {
        self.seal = None;
        // Numbers, digests and a word: there is nothing here JSON cannot hold.
        self.seal = Some(Digest::of(&serde_json::to_vec(&self).unwrap_or_default()));
        self
    }

    fn parse(bytes: &[u8], diff_id: Digest) -> Option<Self> {
        let note: Self = serde_json::from_slice(bytes).ok()?;
        let seal = note.seal;
        let note = note.sealed();
        let is_whole = note.seal == seal && note.format == FORMAT && note.diff_id == diff_id;
        is_whole.then_some(note)
    }
}

impl ImageStore {
    /// Converts what is not there of an image's layers, several at once. `take` gets each with its label, lowest
    /// first, as soon as it and all below it are there, while others are still converted.
    pub(super) fn pieces(
        &self,
        transaction: &Transaction,
        image: &str,
        layers: Vec<LayerSource>,
        events: &(dyn Fn(ImageEvent) + Sync),
        take: &mut dyn FnMut(&str, &Piece) -> Result<()>,
    ) -> Result<()> {
        let mut order = Vec::with_capacity(layers.len());
        let mut wanted: Vec<(Digest, Mutex<Option<LayerSource>>)> = Vec::new();
        for layer in layers {
            let Some(diff_id) = layer.diff_id.map(Digest::from_bytes) else {
                return Err(ImageError::Damaged {
                    path: self.root.clone(),
                    reason: format!("has a layer without a digest ({})", layer.label),
                    remedy: "Remove the image and pull it again.",
                });
            };
            order.push((layer.label.clone(), diff_id));
            if wanted.iter().all(|(other, _)| *other != diff_id) {
                wanted.push((diff_id, Mutex::new(Some(layer))));
            }
        }
        // What takes time begins first; what is there only has to be looked at.
        wanted.sort_by_key(|(diff_id, _)| self.piece_path(*diff_id, PIECE).exists());
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let bytes = AtomicU64::new(0);
        let came = |more: u64| {
            let bytes = bytes.fetch_add(more, Ordering::Relaxed) + more;
            events(ImageEvent::BuildingDisk {
                reference: image.to_owned(),
                bytes,
                finishing: false,
            });
        };
        let work = |made: Sender<(Digest, Result<Piece>)>| {
            while let Some((diff_id, layer)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = lock(layer).take();
                if failed.load(Ordering::Relaxed) {
                    return;
                }
                let piece = self.piece(transaction, image, *diff_id, layer, &came, events);
                if piece.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                // Nobody hears it who has failed already.
                let _ = made.send((*diff_id, piece));
            }
        };
        std::thread::scope(|scope| {
            let (made, arriving) = channel();
            for _ in 0..AT_ONCE.min(wanted.len()) {
                let made = made.clone();
                scope.spawn(|| work(made));
            }
            drop(made);
            let taken = self.take_in_order(&order, &arriving, take);
            failed.fetch_or(taken.is_err(), Ordering::Relaxed);
            taken
        })
    }

    /// Hands on what arrives in the order of an image's layers. The first failure to arrive counts: it may be what
    /// others fail of.
    fn take_in_order(
        &self,
        order: &[(String, Digest)],
        arriving: &Receiver<(Digest, Result<Piece>)>,
        take: &mut dyn FnMut(&str, &Piece) -> Result<()>,
    ) -> Result<()> {
        let mut here = BTreeMap::new();
        for (label, wanted) in order {
            while !here.contains_key(wanted) {
                let Ok((diff_id, piece)) = arriving.recv() else {
                    return Err(ImageError::Damaged {
                        path: self.piece_path(*wanted, PIECE),
                        reason: "was not made".into(),
                        remedy: "Try again.",
                    });
                };
                here.insert(diff_id, piece?);
            }
            if let Some(piece) = here.get(wanted) {
                take(label, piece)?;
            }
        }
        Ok(())
    }

    /// One converted layer; made by one process while others wait.
    fn piece(
        &self,
        transaction: &Transaction,
        image: &str,
        diff_id: Digest,
        layer: Option<LayerSource>,
        came: &dyn Fn(u64),
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Piece> {
        if let Some(piece) = self.existing_piece(diff_id)? {
            return Ok(piece);
        }
        let _lock = self.lock_image(transaction, diff_id, events)?;
        if let Some(piece) = self.existing_piece(diff_id)? {
            return Ok(piece);
        }
        let Some(layer) = layer else {
            return Err(ImageError::Damaged {
                path: self.piece_path(diff_id, PIECE),
                reason: "vanished".into(),
                remedy: "Find out what else writes there, then try again.",
            });
        };
        let (staged, sums) = convert(transaction, image, layer, &diff_id.hex(), came)?;
        self.publish_piece(&staged, &sums)
    }

    /// Converts a layer whose digest is not known before it was read.
    pub(crate) fn new_piece(
        &self,
        transaction: &Transaction,
        image: &str,
        layer: LayerSource,
        came: &dyn Fn(u64),
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Piece> {
        let (staged, sums) = convert(transaction, image, layer, "layer", came)?;
        let _lock = self.lock_image(transaction, staged.diff_id, events)?;
        match self.existing_piece(staged.diff_id)? {
            Some(piece) => Ok(piece),
            None => self.publish_piece(&staged, &sums),
        }
    }

    /// Moves what was converted to its place, the content last: a piece is never without the rest.
    fn publish_piece(&self, staged: &Piece, sums: &ChunkSums) -> Result<Piece> {
        let at = |what| self.piece_path(staged.diff_id, what);
        let mut boot = settled::written_now(&[&staged.path, &staged.index])?;
        if at(PIECE).exists() {
            // It takes the place of one that disks may be known to rest on.
            settled::sync(&staged.path)?;
            boot = None;
        }
        let note = Note {
            format: FORMAT,
            diff_id: staged.diff_id,
            size_bytes: staged.size_bytes,
            sums: staged.sums,
            index: staged.index_digest,
            stream_bytes: staged.stream_bytes,
            converter: CONVERTER.to_owned(),
            boot,
            seal: None,
        };
        files::replace(&at("sums"), sums.text().as_bytes())?;
        self.write_note(note)?;
        for (from, to) in [(&staged.index, at("index")), (&staged.path, at(PIECE))] {
            fs::rename(from, &to).context("publish", &to)?;
        }
        files::sync_dir(&self.disks())?;
        Ok(Piece {
            path: at(PIECE),
            index: at("index"),
            ..staged.clone()
        })
    }

    fn write_note(&self, note: Note) -> Result<()> {
        let path = self.piece_path(note.diff_id, "json");
        // Numbers, digests and words: there is nothing here JSON cannot hold.
        let json = serde_json::to_vec(&note.sealed()).unwrap_or_default();
        files::replace(&path, &json)
    }

    fn note_of(&self, diff_id: Digest) -> Result<Option<Note>> {
        let bytes = files::read_bounded(&self.piece_path(diff_id, "json"), MAX_NOTE)?;
        Ok(bytes.and_then(|bytes| Note::parse(&bytes, diff_id)))
    }

    /// Puts a converted layer on stable storage, where it is not known to be there.
    pub(super) fn settle_layer(&self, diff_id: Digest) -> Result<()> {
        let Some(note) = self.note_of(diff_id)?.filter(|note| note.boot.is_some()) else {
            return Ok(());
        };
        settled::sync(&self.piece_path(diff_id, PIECE))?;
        self.write_note(Note { boot: None, ..note })
    }

    /// The index of the converted layer whose content is at `piece`, and its recorded digest, where there is a note.
    pub(super) fn index_of(&self, piece: &Path) -> Result<(PathBuf, Option<Digest>)> {
        let note = match diff_id_of(piece) {
            Some(diff_id) => self.note_of(diff_id)?,
            None => None,
        };
        Ok((piece.with_extension("index"), note.map(|note| note.index)))
    }

    /// A converted layer, where it is there, of the length that was recorded, and its index is whole.
    pub(super) fn existing_piece(&self, diff_id: Digest) -> Result<Option<Piece>> {
        let at = |what| self.piece_path(diff_id, what);
        let Some(note) = self.note_of(diff_id)? else {
            return Ok(None);
        };
        let piece = Piece {
            path: at(PIECE),
            index: at("index"),
            size_bytes: note.size_bytes,
            sums: note.sums,
            index_digest: note.index,
            diff_id,
            stream_bytes: note.stream_bytes,
        };
        let mut is_whole = fs::metadata(&piece.path).is_ok_and(|it| it.len() == piece.size_bytes)
            && File::open(&piece.index)
                .and_then(|file| Digest::of_reader(BufReader::new(file)))
                .is_ok_and(|digest| digest == piece.index_digest);
        if is_whole && note.boot.is_some() && note.boot != settled::this_boot() {
            is_whole = settled::is_whole(&piece.path, piece.sums);
            if is_whole {
                // What is read in another boot than it was written in is on stable storage.
                self.noted(self.write_note(Note { boot: None, ..note }));
            }
        }
        if !is_whole {
            tracing::warn!(path = %piece.path.display(), "a converted layer is not whole");
        }
        Ok(is_whole.then_some(piece))
    }

    /// A file of a converted layer, there or not.
    pub(super) fn piece_path(&self, diff_id: Digest, what: &str) -> PathBuf {
        self.disks()
            .join(format!("{}.{FORMAT}.{what}", diff_id.hex()))
    }

    /// All files of a converted layer, there or not.
    pub(super) fn piece_files(&self, diff_id: Digest) -> impl Iterator<Item = PathBuf> {
        let paths: Vec<PathBuf> = [PIECE]
            .iter()
            .chain(&BESIDE)
            .map(|what| self.piece_path(diff_id, what))
            .collect();
        paths.into_iter()
    }
}

/// Converts a layer into files of this operation; `came` hears of each part of its uncompressed bytes.
fn convert(
    transaction: &Transaction,
    image: &str,
    layer: LayerSource,
    name: &str,
    came: &dyn Fn(u64),
) -> Result<(Piece, ChunkSums)> {
    let _span = tracing::info_span!("convert", image, layer = name).entered();
    let at = |what: &str| transaction.path(&format!("{name}.{what}"));
    let mut told = 0;
    let mut progress = |bytes| {
        came(bytes - told);
        told = bytes;
    };
    let options = BuildOptions::default();
    let converted = disk::convert(layer, &at(PIECE), &at("index"), &options, &mut progress);
    let (staged, sums) = converted.map_err(|source| ImageError::Disk {
        image: image.to_owned(),
        source: Box::new(source),
    })?;
    came(staged.stream_bytes.saturating_sub(told));
    Ok((staged, sums))
}

/// What making a disk of layers that are compressed like this takes at most.
pub(crate) fn conversion_memory(layers: impl Iterator<Item = Compression>) -> u64 {
    let mut each: Vec<u64> = layers.map(disk::conversion_memory).collect();
    each.sort_unstable_by(|a, b| b.cmp(a));
    each.iter().take(AT_ONCE).sum::<u64>() + disk::join_memory(&BuildOptions::default().limits)
}

/// The layer whose content is at `path`.
pub(super) fn diff_id_of(path: &Path) -> Option<Digest> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.split('.').next())
        .and_then(Digest::from_hex)
}

/// The files beside a piece at `path`, which go with it.
pub(super) fn beside(path: &Path) -> impl Iterator<Item = PathBuf> {
    BESIDE.iter().map(|what| path.with_extension(what))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is set under these locks is set in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
