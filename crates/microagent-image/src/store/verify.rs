//! Reading everything again: whether what is stored is still what was stored.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::pieces::PIECE;
use super::{Entry, ImageStore};
use crate::digest::{Digest, Hasher};
use crate::disk::ChunkSums;
use crate::error::Result;
use crate::event::ImageEvent;
use crate::platform::Platform;
use crate::reference::Reference;

/// Bytes between two events.
const TELL_EVERY: u64 = 16 << 20;

/// What [`ImageStore::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreVerification {
    /// Whether everything is as it was recorded.
    pub ok: bool,
    /// How many bytes were read.
    pub bytes: u64,
    /// Each image.
    pub images: Vec<CheckedImage>,
}

/// An image that was read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckedImage {
    /// Its name.
    pub reference: Reference,
    /// What it was built for.
    pub platform: Platform,
    /// Its digest.
    pub digest: Digest,
    /// Whether it is as it was recorded.
    pub ok: bool,
    /// What is not.
    pub divergence: Vec<ImageDivergence>,
}

/// Something that is not as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageDivergence {
    /// `manifest`, `config`, `layer` (with its number), `disk`, or `index`: which entries a layer has on the disk.
    pub artifact: String,
    /// Its file.
    pub path: PathBuf,
    /// What was recorded.
    pub expected: String,
    /// What is there.
    pub actual: String,
}

/// What a file was found to be.
#[derive(Clone)]
enum Found {
    Missing,
    File { digest: Digest, size: u64 },
    Unreadable(String),
}

/// Files that were read already, and what they were held against: images share them.
struct Reader<'a> {
    found: BTreeMap<(PathBuf, Digest), Found>,
    bytes: u64,
    told: u64,
    events: &'a dyn Fn(ImageEvent),
}

impl ImageStore {
    /// Hashes every blob and the base disk of the images that `names` name again, or of all where it
    /// names none, and names each divergence. A file that images share is read once.
    ///
    /// # Errors
    /// When the index cannot be read, or one of `names` is not there. What is damaged is a finding.
    pub fn verify(
        &self,
        names: &[String],
        events: &dyn Fn(ImageEvent),
    ) -> Result<StoreVerification> {
        let _hold = self.hold()?;
        let entries = self.entries()?;
        let mut wanted: Vec<Entry> = Vec::new();
        for name in names {
            for entry in self.find_in(name, &entries)? {
                if !wanted.contains(&entry) {
                    wanted.push(entry);
                }
            }
        }
        if names.is_empty() {
            wanted = entries;
        }
        wanted.sort_by(|a, b| (&a.reference, &a.platform).cmp(&(&b.reference, &b.platform)));
        let mut reader = Reader {
            found: BTreeMap::new(),
            bytes: 0,
            told: 0,
            events,
        };
        let mut images = Vec::with_capacity(wanted.len());
        for entry in &wanted {
            let divergence = self.divergence(entry, &mut reader)?;
            images.push(CheckedImage {
                reference: entry.reference.clone(),
                platform: entry.platform.clone(),
                digest: entry.manifest,
                ok: divergence.is_empty(),
                divergence,
            });
        }
        Ok(StoreVerification {
            ok: images.iter().all(|image| image.ok),
            bytes: reader.bytes,
            images,
        })
    }

    fn divergence(&self, entry: &Entry, reader: &mut Reader<'_>) -> Result<Vec<ImageDivergence>> {
        let mut all = Vec::new();
        let mut check = |artifact: String, digest: Digest, size: u64, path: PathBuf| {
            all.extend(reader.check(artifact, digest, Some(size), path));
        };
        let path = self.blob_path(entry.manifest);
        check("manifest".into(), entry.manifest, entry.manifest_size, path);
        if let Ok(manifest) = self.manifest(entry.manifest) {
            let config = &manifest.config;
            let path = self.blob_path(config.digest);
            check("config".into(), config.digest, config.size, path);
            for (at, layer) in manifest.layers.iter().enumerate() {
                let path = self.blob_path(layer.digest);
                check(format!("layer {}", at + 1), layer.digest, layer.size, path);
            }
        }
        let mut recorded = |artifact: &str, path: PathBuf, digest: Option<Digest>| {
            all.extend(match digest {
                Some(digest) => reader.check(artifact.to_owned(), digest, None, path),
                None => Some(ImageDivergence {
                    artifact: artifact.to_owned(),
                    path,
                    expected: "a note of what it is".into(),
                    actual: "missing or damaged".into(),
                }),
            });
        };
        for file in self.recorded_files(entry.manifest)? {
            let is_piece = file.path.extension().is_some_and(|it| it == PIECE);
            let index = is_piece.then(|| self.index_of(&file.path)).transpose()?;
            recorded("disk", file.path, file.recorded);
            if let Some((path, digest)) = index {
                recorded("index", path, digest);
            }
        }
        Ok(all)
    }
}

impl Reader<'_> {
    fn check(
        &mut self,
        artifact: String,
        digest: Digest,
        size: Option<u64>,
        path: PathBuf,
    ) -> Option<ImageDivergence> {
        let (expected, actual) = match self.look(&path, digest) {
            Found::File {
                digest: actual,
                size: length,
            } => match size.filter(|size| *size != length) {
                Some(size) => (format!("{size} bytes"), format!("{length} bytes")),
                None if actual == digest => return None,
                None => (digest.to_string(), actual.to_string()),
            },
            Found::Missing => (digest.to_string(), "missing".to_owned()),
            Found::Unreadable(reason) => (digest.to_string(), format!("unreadable: {reason}")),
        };
        Some(ImageDivergence {
            artifact,
            path,
            expected,
            actual,
        })
    }

    fn look(&mut self, path: &Path, recorded: Digest) -> Found {
        let at = (path.to_owned(), recorded);
        if let Some(found) = self.found.get(&at) {
            return found.clone();
        }
        let found = match self.hash(path, recorded) {
            Ok((digest, size)) => Found::File { digest, size },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Missing,
            Err(error) => Found::Unreadable(error.to_string()),
        };
        self.found.insert(at, found.clone());
        found
    }

    fn hash(&mut self, path: &Path, recorded: Digest) -> io::Result<(Digest, u64)> {
        let mut file = File::open(path)?;
        if path
            .extension()
            .is_some_and(|extension| extension == PIECE || extension == "front")
        {
            // Disks are hashed in chunks.
            let size = file.metadata()?.len();
            let sums = ChunkSums::against(&recorded, &file, path)?;
            self.bytes += size;
            (self.events)(ImageEvent::Verifying { bytes: self.bytes });
            return Ok((sums.digest(), size));
        }
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 1 << 18];
        let mut size = 0;
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish(), size)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..count]);
            size += count as u64;
            self.bytes += count as u64;
            if self.bytes.saturating_sub(self.told) >= TELL_EVERY {
                self.told = self.bytes;
                (self.events)(ImageEvent::Verifying { bytes: self.bytes });
            }
        }
    }
}
