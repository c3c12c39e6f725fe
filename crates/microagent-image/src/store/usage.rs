//! What images take: every file counted once, told apart by who else has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter::Sum;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use microagent_host::fs::{FileId, allocated_bytes, file_id};
use serde::Serialize;

use super::{ImageStore, files, pieces};
use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result};
use crate::manifest::Manifest;

/// How long files are, and what they take: a sparse file takes less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// The sum of the files' lengths.
    pub apparent_bytes: u64,
    /// The storage they hold.
    pub allocated_bytes: u64,
}

impl Bytes {
    /// Those of a file that was looked at.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self {
            apparent_bytes: metadata.len(),
            allocated_bytes: allocated_bytes(metadata),
        }
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.apparent_bytes += other.apparent_bytes;
        self.allocated_bytes += other.allocated_bytes;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, bytes| {
            sum += bytes;
            sum
        })
    }
}

/// What one image takes, whatever its names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// In all: blobs and base disk.
    pub total: Bytes,
    /// Of that, what other images have, too.
    pub shared: Bytes,
    /// Of that, what is free when this image alone is removed.
    pub unique: Bytes,
}

/// What the images of a store take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreUsage {
    /// Each image.
    pub images: BTreeMap<Digest, ImageUsage>,
    /// All of them; what they share counts once.
    pub total: Bytes,
    /// What more than one image has.
    pub shared: Bytes,
    /// What only one image has.
    pub unique: Bytes,
    /// Everything in the store, with what belongs to no image.
    pub stored: Bytes,
    /// Parts of layers that did not come whole.
    pub partial: Bytes,
    /// How many there are.
    pub partial_files: u64,
}

/// What a file is known by: its number, or its path where it has none.
type Known = (Option<FileId>, Option<PathBuf>);

impl ImageStore {
    /// Counts what the images take. An image whose files are damaged counts nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn usage(&self) -> Result<StoreUsage> {
        // By its number, hard links count once.
        let mut owners: BTreeMap<Known, (Bytes, BTreeSet<Digest>)> = BTreeMap::new();
        let mut usage = StoreUsage::default();
        let images: BTreeSet<Digest> = self.entries()?.iter().map(|e| e.manifest).collect();
        for image in images {
            let paths = match self.files_of(image) {
                Ok(paths) => paths,
                Err(ImageError::Damaged { .. } | ImageError::BadManifest { .. }) => continue,
                Err(error) => return Err(error),
            };
            usage.images.insert(image, ImageUsage::default());
            for path in paths {
                if let Some(metadata) = look(&path)? {
                    let id = file_id(&metadata);
                    owners
                        .entry((id, id.is_none().then_some(path)))
                        .or_insert_with(|| (Bytes::of(&metadata), BTreeSet::new()))
                        .1
                        .insert(image);
                }
            }
        }
        for (bytes, images) in owners.into_values() {
            let is_shared = images.len() > 1;
            usage.total += bytes;
            *(match is_shared {
                true => &mut usage.shared,
                false => &mut usage.unique,
            }) += bytes;
            for image in images {
                let image = usage.images.entry(image).or_default();
                image.total += bytes;
                *(match is_shared {
                    true => &mut image.shared,
                    false => &mut image.unique,
                }) += bytes;
            }
        }
        for path in files::entries(&super::partial::directory(&self.root))? {
            usage.partial += bytes_below(&path)?;
            usage.partial_files += 1;
        }
        usage.stored = bytes_below(&self.root)?;
        Ok(usage)
    }

    /// Every file of an image: manifest, configuration, layers and base disk, there or not.
    pub(super) fn files_of(&self, image: Digest) -> Result<Vec<PathBuf>> {
        let manifest = self.manifest(image)?;
        let blobs = [image, manifest.config.digest]
            .into_iter()
            .chain(manifest.layers.iter().map(|layer| layer.digest));
        Ok(blobs
            .map(|digest| self.blob_path(digest))
            .chain(self.disk_files(image))
            .chain(self.pieces_of(image, &manifest)?)
            .collect())
    }

    /// The files of the converted layers of an image, there or not: those its disk is made of and, with or without
    /// a disk, those of its layers.
    fn pieces_of(&self, image: Digest, manifest: &Manifest) -> Result<BTreeSet<PathBuf>> {
        let listed = self.listed_pieces(&self.disk_path(image))?;
        let mut paths: BTreeSet<PathBuf> = listed
            .iter()
            .flat_map(|piece| pieces::beside(piece).chain([piece.clone()]))
            .collect();
        // A configuration that is damaged names no layers: what is lost can be made again.
        if let Ok(bytes) = self.blob_bytes(manifest.config.digest, MAX_CONFIG)
            && let Ok(config) = ImageConfig::parse(&bytes)
        {
            let of_layers = config.diff_ids.iter().flat_map(|id| self.piece_files(*id));
            paths.extend(of_layers);
        }
        Ok(paths)
    }
}

fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("look at", path),
    }
}

/// The bytes of a file, or of all files below a directory; none where it is gone.
pub(super) fn bytes_below(path: &Path) -> Result<Bytes> {
    let Some(metadata) = look(path)? else {
        return Ok(Bytes::default());
    };
    if !metadata.is_dir() {
        return Ok(Bytes::of(&metadata));
    }
    files::entries(path)?
        .iter()
        .map(|entry| bytes_below(entry))
        .sum()
}
