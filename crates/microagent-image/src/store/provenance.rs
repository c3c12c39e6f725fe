//! Where an image comes from, what it is made of, and what was made of it: one record to show.
//!
//! What only the pull or import knew stands in the index, beside the name; what made the disk stands in
//! the disk's note; layers and platform are read from the image's own documents, which are hashed again
//! each time.

use std::time::SystemTime;

use serde::Serialize;

use super::{Entry, ImageRecord, ImageStore};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::Compression;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::signature::CheckedSignature;

/// Where an image comes from, and what was made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Provenance {
    /// The version of what was recorded: 1 did not know signatures.
    pub record_version: u32,
    /// The name it came under.
    pub reference: Reference,
    /// What that name stood for: an index, or the image itself.
    pub resolved_digest: Digest,
    /// The image.
    pub digest: Digest,
    /// The registry or mirror it came from; none of what was imported or made here.
    pub registry: Option<String>,
    /// When it came.
    #[serde(serialize_with = "super::rfc3339")]
    pub at: SystemTime,
    /// What it was built for.
    pub platform: Platform,
    /// Its layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// What made its base disk; none while there is none, and for disks of before that was recorded.
    pub converter: Option<String>,
    /// The version of the base disk's format, while there is one.
    pub disk_format: Option<u32>,
    /// The signature that was checked; none if none was.
    pub signature: Option<CheckedSignature>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerRecord {
    /// The digest of the layer as stored.
    pub digest: Digest,
    /// The digest of the layer unpacked.
    pub diff_id: Option<Digest>,
    /// Its size as stored, in bytes.
    pub size_bytes: u64,
    /// How it is stored.
    pub compression: Compression,
}

/// The layers of an image with what its configuration says of them.
pub(super) fn layers(record: &ImageRecord, config: &ImageConfig) -> Vec<LayerRecord> {
    let diff_ids = config.diff_ids.iter().copied().map(Some);
    let layers = record.layers.iter();
    layers
        .zip(diff_ids.chain(std::iter::repeat(None)))
        .map(|(layer, diff_id)| LayerRecord {
            digest: layer.digest,
            diff_id,
            size_bytes: layer.size,
            compression: layer.compression,
        })
        .collect()
}

impl ImageStore {
    pub(super) fn provenance(
        &self,
        entry: &Entry,
        record: &ImageRecord,
        config: &ImageConfig,
    ) -> Provenance {
        let disk = record
            .disk
            .as_ref()
            .map(|_| self.disk_origin(entry.manifest));
        Provenance {
            record_version: entry.version,
            reference: entry
                .tagged_from
                .clone()
                .unwrap_or_else(|| entry.reference.clone()),
            resolved_digest: entry.index_digest.unwrap_or(entry.manifest),
            digest: entry.manifest,
            registry: entry.pulled_from.clone(),
            at: entry.pulled_at,
            platform: entry.platform.clone(),
            layers: layers(record, config),
            converter: disk.as_ref().and_then(|(converter, _)| converter.clone()),
            disk_format: disk.map(|(_, format)| format),
            signature: entry.signature.clone(),
        }
    }
}
