//! The content store: an OCI layout of verified blobs, an index of references, and base disks built from them.
//!
//! ```text
//! <root>/oci-layout, index.json, blobs/sha256/<hex>     an OCI image layout
//! <root>/disks/<hex>.<format>.vmdk, .front, .json, .sums  base disks by manifest digest: lists and fronts
//! <root>/disks/<hex>.<format>.piece, .index, …           converted layers by the digest of their content
//! <root>/partial/<hex>                                   layers that did not come whole yet
//! <root>/tmp/op-…                                        operations under way
//! <root>/locks/<hex>, index.lock, activity.lock          advisory locks
//! ```
//! Readers take no lock. Whoever adds content holds `activity.lock` shared, whoever reclaims holds it
//! exclusively; `locks/<hex>` makes one process at a time work on one image; `index.lock` orders
//! changes of `index.json`. They are always taken in this order.

mod disks;
pub(crate) mod files;
mod history;
mod index;
mod names;
mod partial;
mod pieces;
mod provenance;
mod reclaim;
mod record;
mod settled;
mod tree;
mod usage;
mod verify;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use microagent_host::lock::{Lock, Sharing};
use serde::{Serialize, Serializer};

use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::{self, Document, Layer, MAX_MANIFEST, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::signature::CheckedSignature;
pub use disks::{BaseDisk, BaseDiskGuard};
pub(crate) use disks::{StagedDisk, build_to, layer_source};
use files::Activity;
pub(crate) use files::Transaction;
pub use history::{HistoryStep, ImageHistory};
pub(crate) use index::{Entry, now};
pub use names::{Tagged, Untagged};
pub(crate) use pieces::conversion_memory;
pub use provenance::{LayerRecord, Provenance};
pub use reclaim::{Needs, PruneOptions, PruneReason, Pruned, PrunedImage, Reclaimed, Removed};
pub use tree::{ImageTree, TreeImage, TreeLayer};
pub use usage::{Bytes, ImageUsage, StoreUsage};
pub use verify::{CheckedImage, ImageDivergence, StoreVerification};

/// The `oci-layout` file every OCI layout has.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The images of one state directory. Cheap to open; any number of processes may use one at a time.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

/// A verified file of an operation under way, and the name it will have.
pub(crate) type StagedBlob = (Digest, PathBuf);

/// One image in the store: a reference for a platform, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageRecord {
    /// The name it was pulled or imported under.
    pub reference: Reference,
    /// The digest of its manifest: the image's identity.
    pub digest: Digest,
    /// What the reference named, where that was an index of several platforms.
    pub index_digest: Option<Digest>,
    /// What it was built for.
    pub platform: Platform,
    /// The digest of its configuration.
    pub config: Digest,
    /// The layers, bottom first.
    #[serde(serialize_with = "layer_digests")]
    pub layers: Vec<Layer>,
    /// Layers, configuration and manifest as stored, in bytes.
    pub size_bytes: u64,
    /// When it was pulled or imported.
    #[serde(serialize_with = "rfc3339")]
    pub pulled_at: SystemTime,
    /// The registry or mirror it was pulled from; `None` for what was imported.
    pub pulled_from: Option<String>,
    /// The name it came under, where somebody gave it this one afterwards.
    pub tagged_from: Option<Reference>,
    /// The signature that was checked, if one was.
    pub signature: Option<CheckedSignature>,
    /// When its base disk was last asked for.
    #[serde(serialize_with = "rfc3339_or_null")]
    pub last_used: Option<SystemTime>,
    /// Where its base disk is, once built.
    pub disk: Option<PathBuf>,
}

fn layer_digests<S: Serializer>(
    layers: &[Layer],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(layers.iter().map(|layer| layer.digest))
}

fn rfc3339<S: Serializer>(
    time: &SystemTime,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

fn rfc3339_or_null<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// A record, the image's configuration, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageDetails {
    /// What the store knows.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// What the image says of itself.
    pub image: ImageConfig,
    /// Where it comes from, and what was made of it.
    pub provenance: Provenance,
}

/// While one lives, in any process, nothing of the store is removed: take it before an image is looked for,
/// and keep it until the image's [`BaseDisk`] is held, or until what was read is no longer needed.
#[derive(Debug)]
pub struct StoreHold {
    _activity: Activity,
}

impl ImageStore {
    /// Opens the store at `root`, creating what is missing.
    ///
    /// # Errors
    /// When directories cannot be made, or `root` is an OCI layout of an unknown version.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let store = Self { root: root.into() };
        for folder in ["blobs/sha256", "disks", "locks", "partial", "tmp"] {
            files::make_dir(&store.root.join(folder))
                .map_err(|error| store.without_place(error))?;
        }
        let marker = store.root.join("oci-layout");
        match files::read_bounded(&marker, 4096)? {
            None => {
                // Inside a transaction, so that no sweep takes the new file for the rest of a crash.
                let _transaction = store.begin()?;
                files::replace(&marker, LAYOUT)?;
            }
            Some(found) => crate::import::check_layout_version(&marker, &found)?,
        }
        Ok(store)
    }

    /// What keeps a directory of the store from being made, as what it means for the store.
    fn without_place(&self, error: ImageError) -> ImageError {
        use std::io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
        match error {
            ImageError::Io { source, .. }
                if matches!(
                    source.kind(),
                    NotADirectory | PermissionDenied | ReadOnlyFilesystem
                ) =>
            {
                ImageError::NoPlace {
                    path: self.root.clone(),
                    source,
                }
            }
            other => other,
        }
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keeps everything that is in the store from being removed; waits for a removal that is under way.
    ///
    /// # Errors
    /// When the store cannot be locked.
    pub fn hold(&self) -> Result<StoreHold> {
        Ok(StoreHold {
            _activity: Activity::begin(&self.root)?,
        })
    }

    /// The names in the store at `root`, whatever became of the images. Touches nothing: where there is
    /// no store there are no names.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn names(root: &Path) -> Result<Vec<Reference>> {
        let entries = index::read(&root.join("index.json"))?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.reference).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Everything in the store, by reference and platform. An image whose files are damaged is left out
    /// here and reported by [`resolve`](Self::resolve).
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for entry in self.entries()? {
            match self.record(&entry) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(%error, image = %entry.reference, "image left out"),
            }
        }
        records.sort_by(|a, b| (&a.reference, &a.platform).cmp(&(&b.reference, &b.platform)));
        Ok(records)
    }

    /// Finds an image by reference. A reference with a digest finds the image of that digest, under
    /// whatever name it came: the digest says everything.
    ///
    /// # Errors
    /// When the index or the image's manifest cannot be read.
    pub fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<ImageRecord>> {
        let mut best: Option<((u8, bool), Entry)> = None;
        for entry in self.entries()? {
            let named = match reference.digest() {
                Some(digest) => entry.manifest == digest || entry.index_digest == Some(digest),
                None => entry.reference == *reference,
            };
            if !named {
                continue;
            }
            let Some(fit) = entry.platform.fit(platform) else {
                continue;
            };
            let rank = (fit, entry.reference != *reference);
            if best.as_ref().is_none_or(|(found, _)| rank < *found) {
                best = Some((rank, entry));
            }
        }
        best.map(|(_, entry)| self.record(&entry)).transpose()
    }

    /// Shows one image: by reference, by digest, or by a unique prefix (4 digits or more) of its digest.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`], or when its files cannot be read.
    pub fn inspect(&self, name: &str) -> Result<ImageDetails> {
        let entries = self.entries()?;
        let chosen = &self.meant(name, None, &entries)?;
        let record = self.record(chosen)?;
        let image = self.config(&record)?;
        let provenance = self.provenance(chosen, &record, &image);
        Ok(ImageDetails {
            record,
            image,
            provenance,
        })
    }

    /// Finds one image as [`inspect`](Self::inspect) does, of the given platform if there is one.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`], [`ImageError::NoSuchPlatform`], or when its files
    /// cannot be read.
    pub fn select(&self, name: &str, platform: Option<&Platform>) -> Result<ImageRecord> {
        self.record(&self.meant(name, platform, &self.entries()?)?)
    }

    /// The configuration of an image.
    ///
    /// # Errors
    /// When the stored configuration is missing, damaged or refused.
    pub fn config(&self, record: &ImageRecord) -> Result<ImageConfig> {
        ImageConfig::parse(&self.blob_bytes(record.config, MAX_CONFIG)?)
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        index::read(&self.root.join("index.json"))
    }

    /// The one image that is meant by `name`: among the platforms of one, the given or the host's.
    fn meant(&self, name: &str, platform: Option<&Platform>, entries: &[Entry]) -> Result<Entry> {
        let found = self.find_in(name, entries)?;
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let best = found
            .iter()
            .filter_map(|entry| entry.platform.fit(&wanted))
            .min();
        if best.is_none() && platform.is_some() {
            let mut available: Vec<String> = found
                .iter()
                .map(|entry| entry.platform.to_string())
                .collect();
            available.dedup();
            return Err(ImageError::NoSuchPlatform {
                image: crate::error::clip(name),
                wanted,
                available: available.join(", "),
            });
        }
        let mut meant = found
            .iter()
            .filter(|entry| best.is_none() || entry.platform.fit(&wanted) == best);
        match (meant.next(), meant.next()) {
            (Some(first), Some(second)) if second.manifest != first.manifest => {
                Err(ambiguous(name, &found))
            }
            (Some(first), _) => Ok(first.clone()),
            (None, _) => Err(ambiguous(name, &found)),
        }
    }

    fn find_in(&self, name: &str, entries: &[Entry]) -> Result<Vec<Entry>> {
        let select = |matches: &dyn Fn(&Entry) -> bool| -> Vec<Entry> {
            entries
                .iter()
                .filter(|entry| matches(entry))
                .cloned()
                .collect()
        };
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let mut found = match name.parse::<Reference>() {
            Ok(reference) => select(&|entry| match reference.digest() {
                Some(digest) => entry.manifest == digest || entry.index_digest == Some(digest),
                None => entry.reference == reference,
            }),
            Err(_) => Vec::new(),
        };
        if found.is_empty()
            && prefix.len() >= 4
            && prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            found = select(&|entry| entry.manifest.hex().starts_with(prefix));
            if found
                .iter()
                .any(|entry| entry.manifest != found[0].manifest)
            {
                return Err(ambiguous(name, &found));
            }
        }
        if found.is_empty() {
            return Err(ImageError::Unknown {
                name: crate::error::clip(name),
            });
        }
        Ok(found)
    }

    fn record(&self, entry: &Entry) -> Result<ImageRecord> {
        let manifest = self.manifest(entry.manifest)?;
        let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        let disk = self.disk_path(entry.manifest);
        let used =
            fs::metadata(self.disk_note_path(entry.manifest)).and_then(|note| note.modified());
        Ok(ImageRecord {
            reference: entry.reference.clone(),
            digest: entry.manifest,
            index_digest: entry.index_digest,
            platform: entry.platform.clone(),
            config: manifest.config.digest,
            size_bytes: layers + manifest.config.size + entry.manifest_size,
            layers: manifest.layers,
            pulled_at: entry.pulled_at,
            pulled_from: entry.pulled_from.clone(),
            tagged_from: entry.tagged_from.clone(),
            signature: entry.signature.clone(),
            last_used: used.ok(),
            disk: disk.exists().then_some(disk),
        })
    }

    pub(crate) fn manifest(&self, digest: Digest) -> Result<Manifest> {
        match manifest::parse(&self.blob_bytes(digest, MAX_MANIFEST)?)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => Err(ImageError::Damaged {
                path: self.blob_path(digest),
                reason: "is an index where a manifest belongs".into(),
                remedy: "Remove the image and pull it again.",
            }),
        }
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Whether a blob of this size is there. Blobs are verified before they get their name, so the
    /// size guards only against truncation by the file system.
    pub(crate) fn has_blob(&self, digest: Digest, size: u64) -> bool {
        fs::symlink_metadata(self.blob_path(digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// A small blob, verified again.
    pub(crate) fn blob_bytes(&self, digest: Digest, limit: u64) -> Result<Vec<u8>> {
        const REMEDY: &str = "Remove the image and pull or import it again.";
        let path = self.blob_path(digest);
        let damaged = |reason: &str| ImageError::Damaged {
            path: path.clone(),
            reason: reason.into(),
            remedy: REMEDY,
        };
        let bytes = files::read_bounded(&path, limit)?.ok_or_else(|| damaged("is missing"))?;
        if Digest::of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(damaged("does not hash to its name"))
        }
    }

    pub(crate) fn begin(&self) -> Result<Transaction> {
        Transaction::begin(&self.root)
    }

    /// Waits until nobody else works on this image. Taken inside a transaction only.
    pub(crate) fn lock_image(
        &self,
        _transaction: &Transaction,
        digest: Digest,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Lock> {
        let path = self.root.join("locks").join(digest.hex());
        let waiting = || events(ImageEvent::Waiting { digest });
        Lock::wait(files::lock_file(&path)?, Sharing::Exclusive, waiting).context("lock", &path)
    }

    /// Gives verified files their names, then makes `entry` point to them: from that instant on the
    /// image is in the store.
    pub(crate) fn publish(
        &self,
        transaction: &Transaction,
        blobs: &[StagedBlob],
        mut entry: Entry,
    ) -> Result<ImageRecord> {
        for (digest, staged) in blobs {
            let path = self.blob_path(*digest);
            match fs::rename(staged, &path) {
                // Another image has this layer too, and was first.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
                renamed => renamed.context("publish", &path)?,
            }
        }
        files::sync_dir(&self.blobs())?;
        self.change_index(transaction, |entries| {
            // A signature is of the content, under whatever name it came, and holds as long as that.
            if entry.signature.is_none() {
                entry.signature = entries
                    .iter()
                    .find(|old| old.manifest == entry.manifest && old.signature.is_some())
                    .and_then(|old| old.signature.clone());
            }
            entries
                .retain(|old| old.reference != entry.reference || old.platform != entry.platform);
            entries.push(entry.clone());
            Ok(())
        })?;
        self.record(&entry)
    }

    /// Inside a transaction, so that no sweep takes the new index for the rest of a crash.
    fn change_index(
        &self,
        _transaction: &Transaction,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<()>,
    ) -> Result<()> {
        let lock_path = self.root.join("index.lock");
        let _lock = Lock::wait(files::lock_file(&lock_path)?, Sharing::Exclusive, || ())
            .context("lock", &lock_path)?;
        let path = self.root.join("index.json");
        let mut entries = index::read(&path)?;
        change(&mut entries)?;
        index::write(&path, &entries)
    }
}

fn ambiguous(name: &str, entries: &[Entry]) -> ImageError {
    let mut candidates: Vec<String> = entries
        .iter()
        .map(|entry| {
            format!(
                "{} ({}, {})",
                entry.reference,
                entry.platform,
                entry.manifest.short()
            )
        })
        .collect();
    candidates.sort();
    candidates.truncate(8);
    ImageError::Ambiguous {
        name: crate::error::clip(name),
        candidates: candidates.join(", "),
    }
}

/// Writes a small blob of an operation, to be published with it.
pub(crate) fn stage_bytes(transaction: &Transaction, bytes: &[u8]) -> Result<StagedBlob> {
    let digest = Digest::of(bytes);
    let path = transaction.path(&format!("small-{}", digest.hex()));
    // Seen by nobody before it is published, so it needs no rename.
    let mut file = files::create_new(&path)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .context("write", &path)?;
    Ok((digest, path))
}
