//! An image out of another and what was changed on top of it: an overlay's upper directory becomes one more layer.
//!
//! The layer says exactly what the directory says: what was removed by whiteouts, what was replaced as a whole by
//! opaque ones, owners, modes, times, attributes, hard links, devices and holes. Equal directories give equal bytes,
//! and nothing in the image tells when it was committed.

mod change;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::{Compression as Level, GzBuilder};
use microagent_ext4::{ROOT, Volume};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub use self::change::ImageChange;
use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::import::{LayerOut, manifest_json};
use crate::manifest::{Compression, MAX_LAYER, MAX_LAYERS, Manifest, OCI_MANIFEST};
use crate::pack::{self, PackError, Packed, Shape};
use crate::reference::Reference;
use crate::store::{self, Entry, ImageRecord, ImageStore, files};
use crate::sync::Syncer;

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What was changed, as an overlay file system left it.
#[derive(Clone, Copy, Debug)]
pub struct UpperDirectory<'a> {
    /// The ext4 file system it is on, which nobody may write to meanwhile. What its journal holds counts.
    pub disk: &'a Path,
    /// Its name in the disk's root. Where it is not there, nothing was changed.
    pub name: &'a [u8],
    /// Paths in it that are no part of the change, without a leading slash.
    pub without: &'a [&'a [u8]],
}

/// How a change becomes an image.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CommitOptions {
    /// Said of the new layer in the image's history.
    pub message: Option<String>,
    /// Who made it, said there too.
    pub author: Option<String>,
    /// Changes of what the image says of itself, in this order.
    pub changes: Vec<ImageChange>,
}

impl CommitOptions {
    /// No message, no author, no changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the message.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Sets the author.
    #[must_use]
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = Some(author.into());
        self
    }

    /// Adds a change of what the image says of itself.
    #[must_use]
    pub fn change(mut self, change: ImageChange) -> Self {
        self.changes.push(change);
        self
    }
}

/// What a commit made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Committed {
    /// The image.
    pub image: ImageRecord,
    /// The digest of its new layer.
    pub layer: Digest,
    /// The layer's size as stored, in bytes.
    pub layer_bytes: u64,
    /// The digest of the layer's tar stream.
    pub diff_id: Digest,
    /// What is in the layer, whiteouts included.
    pub entries: u64,
    /// Sockets that were left out: they belong to a process, and no layer holds them.
    pub sockets_left_out: u64,
}

impl ImageStore {
    /// Makes the image `reference` out of the image with the manifest `base` and what was changed on top of it.
    ///
    /// # Errors
    /// [`ImageError::BaseGone`] when the store does not have the base any more, [`ImageError::CannotCommit`] when a
    /// layer cannot say what is in the directory, [`ImageError::Volume`] when its disk cannot be read.
    pub fn commit(
        &self,
        base: Digest,
        upper: &UpperDirectory<'_>,
        reference: &Reference,
        options: &CommitOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Committed> {
        let refuse = |reason: String| ImageError::CannotCommit {
            image: reference.to_string(),
            reason,
        };
        if reference.digest().is_some() {
            return Err(refuse(
                "its digest is not known before it is made; give a name and a tag".into(),
            ));
        }
        let transaction = self.begin()?;
        let (below, config) = self.base_of(base)?;
        if below.layers.len() >= MAX_LAYERS {
            return Err(refuse(format!(
                "its base has {MAX_LAYERS} layers already; export its root file system and import that"
            )));
        }
        let staged = transaction.path("layer");
        let told = &mut Told::new(reference, events);
        let layer = write_layer(upper, &staged, told).map_err(|error| match error {
            PackError::Refused { .. } => refuse(error.to_string()),
            PackError::Disk(source) => ImageError::Volume {
                path: upper.disk.to_owned(),
                source,
            },
            PackError::Output(source) => match Err(source).context("write", &staged) {
                Ok(()) => refuse("it cannot be written".into()),
                Err(error) => error,
            },
        })?;
        if layer.bytes > MAX_LAYER {
            return Err(refuse(format!(
                "its new layer would be larger than {MAX_LAYER} bytes"
            )));
        }
        let config = new_config(&config, &layer, options).map_err(refuse)?;
        let platform = ImageConfig::parse(&config)?.platform;
        let mut layers: Vec<LayerOut> = below
            .layers
            .iter()
            .map(|layer| LayerOut {
                media_type: layer.compression.oci_media_type(),
                digest: layer.digest,
                size: layer.size,
            })
            .collect();
        layers.push(LayerOut {
            media_type: Compression::Gzip.oci_media_type(),
            digest: layer.digest,
            size: layer.bytes,
        });
        let manifest = manifest_json(&config, &layers);
        let digest = Digest::of(&manifest);
        let blobs = [
            (layer.digest, staged),
            store::stage_bytes(&transaction, &config)?,
            store::stage_bytes(&transaction, &manifest)?,
        ];
        let size = manifest.len() as u64;
        let entry = Entry::made_here(reference, platform, digest, OCI_MANIFEST, size);
        let image = self.publish(&transaction, &blobs, entry)?;
        events(ImageEvent::Done {
            reference: reference.to_string(),
            digest,
        });
        Ok(Committed {
            image,
            layer: layer.digest,
            layer_bytes: layer.bytes,
            diff_id: layer.diff_id,
            entries: layer.packed.entries,
            sockets_left_out: layer.packed.sockets,
        })
    }

    /// The base of a commit, whole, and its configuration as stored.
    fn base_of(&self, base: Digest) -> Result<(Manifest, Vec<u8>)> {
        let gone = || ImageError::BaseGone { digest: base };
        // A workspace's image is kept with or without a name.
        if !self.blob_path(base).exists() {
            return Err(gone());
        }
        let manifest = self.manifest(base)?;
        let whole = manifest
            .layers
            .iter()
            .all(|layer| self.has_blob(layer.digest, layer.size));
        if !whole || !self.blob_path(manifest.config.digest).exists() {
            return Err(gone());
        }
        let config = self.blob_bytes(manifest.config.digest, MAX_CONFIG)?;
        ImageConfig::parse(&config)?;
        Ok((manifest, config))
    }
}

/// A layer that was written, and is on stable storage.
struct Written {
    digest: Digest,
    bytes: u64,
    diff_id: Digest,
    packed: Packed,
}

/// Counts and hashes what passes.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
            bytes: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes to a file that is on its way to stable storage meanwhile.
struct Synced {
    file: File,
    syncer: Syncer,
}

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.syncer.wrote(count)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_layer(
    upper: &UpperDirectory<'_>,
    to: &Path,
    told: &mut Told<'_>,
) -> std::result::Result<Written, PackError> {
    let volume = Volume::open(File::open(upper.disk)?)?;
    let folder = volume.lookup(&volume.inode(ROOT)?, upper.name)?;
    let file = files::create_new(to).map_err(|error| match error {
        ImageError::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    })?;
    let synced = Synced {
        syncer: Syncer::new(&file)?,
        file,
    };
    // No time and no name in the header, and always the same system.
    let gzip = GzBuilder::new()
        .operating_system(255)
        .write(Hashed::new(synced), Level::default());
    let mut stream = BufWriter::with_capacity(256 << 10, Hashed::new(gzip));
    let shape = Shape::Upper {
        without: upper.without,
    };
    let packed = match folder {
        Some(folder) => pack::pack(&volume, &folder, shape, &mut stream, &mut |bytes| {
            told.tell(bytes);
        })?,
        None => pack::empty(&mut stream)?,
    };
    let plain = stream
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    let diff_id = plain.hasher.finish();
    let packed_layer = plain.inner.finish()?;
    let Synced { mut syncer, file } = packed_layer.inner;
    syncer.request()?;
    syncer.finish()?;
    file.sync_all()?;
    Ok(Written {
        digest: packed_layer.hasher.finish(),
        bytes: packed_layer.bytes,
        diff_id,
        packed,
    })
}

/// The base's configuration with one layer more. What we do not know of it stays.
fn new_config(
    base: &[u8],
    layer: &Written,
    options: &CommitOptions,
) -> std::result::Result<Vec<u8>, String> {
    let odd = || "the configuration of its base is not understood".to_owned();
    let mut config: Map<String, Value> = serde_json::from_slice(base).map_err(|_| odd())?;
    let diff_ids = config
        .get_mut("rootfs")
        .and_then(|rootfs| rootfs.get_mut("diff_ids"))
        .and_then(Value::as_array_mut)
        .ok_or_else(odd)?;
    let below = diff_ids.len();
    diff_ids.push(json!(layer.diff_id));
    // The newest thing in the layer says when it was made, whenever it is committed.
    let created = created(layer.packed.newest);
    let mut history = json!({ "created": created, "created_by": "microagent commit" });
    if let Some(message) = &options.message {
        history["comment"] = json!(message);
    }
    if let Some(author) = &options.author {
        history["author"] = json!(author);
        config.insert("author".into(), json!(author));
    }
    let mut past = match config.remove("history") {
        Some(Value::Array(past)) => past,
        _ => Vec::new(),
    };
    // Steps and layers are told apart by their order alone: one that was never written is left blank.
    let told = past.iter().filter(|step| step["empty_layer"] != true);
    let blank = below.saturating_sub(told.count());
    past.extend(std::iter::repeat_n(json!({}), blank));
    past.push(history);
    config.insert("history".into(), json!(past));
    config.insert("created".into(), json!(created));
    // What the base's builder said of itself is not true of this image.
    for stale in ["container", "container_config", "id", "parent"] {
        config.remove(stale);
    }
    if !config.get("config").is_some_and(Value::is_object) {
        config.insert("config".into(), json!({}));
    }
    if let Some(run) = config.get_mut("config").and_then(Value::as_object_mut) {
        for change in &options.changes {
            change.apply(run);
        }
    }
    serde_json::to_vec(&config).map_err(|error| error.to_string())
}

/// The time of the newest entry: none in the future, and none before there was time.
fn created(newest: Option<i64>) -> String {
    let seconds = u64::try_from(newest.unwrap_or(0)).unwrap_or(0);
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let at = at.unwrap_or(UNIX_EPOCH).min(SystemTime::now());
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Tells of progress, but not too often.
struct Told<'e> {
    events: &'e (dyn Fn(ImageEvent) + Sync),
    reference: String,
    at: Instant,
}

impl<'e> Told<'e> {
    fn new(reference: &Reference, events: &'e (dyn Fn(ImageEvent) + Sync)) -> Self {
        Self {
            events,
            reference: reference.to_string(),
            at: Instant::now(),
        }
    }

    fn tell(&mut self, bytes: u64) {
        if self.at.elapsed() >= PROGRESS_EVERY {
            self.at = Instant::now();
            (self.events)(ImageEvent::Committing {
                reference: self.reference.clone(),
                bytes,
            });
        }
    }
}
