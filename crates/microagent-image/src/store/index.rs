//! Which references the store knows: `index.json`, a standard OCI image index that other tools read too.
//!
//! A reference is the annotation `org.opencontainers.image.ref.name` of a manifest's descriptor, in its
//! canonical form; what else we know stands in annotations of our own beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files;
use crate::choose::Chosen;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::manifest::{Descriptor, DescriptorPlatform, OCI_INDEX};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::signature::CheckedSignature;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const PULLED_AT: &str = "microagent.pulled-at";
const INDEX_DIGEST: &str = "microagent.index-digest";
const PULLED_FROM: &str = "microagent.pulled-from";
const TAGGED_FROM: &str = "microagent.tagged-from";
const SIGNATURE: &str = "microagent.signature";
/// The version of what we note of an image; what has none is of version 1, which knew no signatures.
const RECORD: &str = "microagent.record";
/// Today's.
pub(super) const RECORD_VERSION: u32 = 2;
const OURS: [&str; 7] = [
    REF_NAME,
    PULLED_AT,
    INDEX_DIGEST,
    PULLED_FROM,
    TAGGED_FROM,
    SIGNATURE,
    RECORD,
];
/// `index.json` is ours and small; more than this is damage.
const MAX_INDEX: u64 = 64 << 20;

/// One line of the index: a reference and platform, and the manifest they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    pub(crate) manifest: Digest,
    pub(crate) media_type: String,
    pub(crate) manifest_size: u64,
    pub(crate) index_digest: Option<Digest>,
    pub(crate) pulled_at: SystemTime,
    /// The registry it was pulled from; none of what was imported.
    pub(crate) pulled_from: Option<String>,
    /// The name it came under, where this one was given to it afterwards.
    pub(crate) tagged_from: Option<Reference>,
    pub(crate) signature: Option<CheckedSignature>,
    /// The version it was written with.
    pub(crate) version: u32,
    /// Notes that are not ours to judge: of other tools, and of versions to come.
    pub(crate) other: BTreeMap<String, String>,
}

impl Entry {
    /// What `chosen` is known by from now on.
    pub(crate) fn new(reference: &Reference, chosen: &Chosen, pulled_from: Option<String>) -> Self {
        let size = chosen.manifest_bytes.len() as u64;
        let platform = chosen.config.platform.clone();
        let media_type = chosen.manifest.media_type;
        Self {
            index_digest: chosen.index_digest,
            pulled_from,
            ..Self::made_here(reference, platform, chosen.digest, media_type, size)
        }
    }

    /// What an image is known by that came from no registry and out of no index.
    pub(crate) fn made_here(
        reference: &Reference,
        platform: Platform,
        manifest: Digest,
        media_type: &str,
        manifest_size: u64,
    ) -> Self {
        Self {
            reference: reference.clone(),
            platform,
            manifest,
            media_type: media_type.to_owned(),
            manifest_size,
            index_digest: None,
            pulled_at: now(),
            pulled_from: None,
            tagged_from: None,
            signature: None,
            version: RECORD_VERSION,
            other: BTreeMap::new(),
        }
    }
}

/// Now, to the second: what the index holds.
pub(crate) fn now() -> SystemTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    schema_version: u64,
    media_type: String,
    manifests: Vec<Descriptor>,
}

pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    let Some(bytes) = files::read_bounded(path, MAX_INDEX)? else {
        return Ok(Vec::new());
    };
    let damaged = |reason: String| ImageError::Damaged {
        path: path.to_owned(),
        reason,
        remedy: "Remove it and pull or import the images again; layers already stored are reused.",
    };
    let layout: Layout = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("cannot be read: {error}")))?;
    let mut entries = Vec::with_capacity(layout.manifests.len());
    for (at, descriptor) in layout.manifests.iter().enumerate() {
        match Entry::read(descriptor) {
            Some(entry) => entries.push(entry),
            // What another tool wrote without a name, or for no platform, is not ours: left out, not an error. One
            // of ours would be lost with the next change, and its layers with the next prune.
            None if is_ours(descriptor) => {
                return Err(ImageError::Damaged {
                    path: path.to_owned(),
                    reason: format!(
                        "has no readable name or platform in its entry {} ({})",
                        at + 1,
                        descriptor.digest
                    ),
                    remedy: "Mend that entry, or remove it and pull or import its image again; layers already stored are reused.",
                });
            }
            None => {}
        }
    }
    Ok(entries)
}

fn is_ours(descriptor: &Descriptor) -> bool {
    let notes = descriptor.annotations.iter().flatten();
    notes
        .into_iter()
        .any(|(name, _)| name.starts_with("microagent."))
}

pub(super) fn write(path: &Path, entries: &[Entry]) -> Result<()> {
    let layout = Layout {
        schema_version: 2,
        media_type: OCI_INDEX.into(),
        manifests: entries.iter().map(Entry::descriptor).collect(),
    };
    // Strings, lists and maps with string keys: there is nothing here JSON cannot hold.
    let json = serde_json::to_vec_pretty(&layout).unwrap_or_default();
    files::write_atomically(path, &json)
}

impl Entry {
    fn read(descriptor: &Descriptor) -> Option<Self> {
        let notes = descriptor.annotations.as_ref()?;
        let seconds = notes.get(PULLED_AT).and_then(|text| text.parse().ok());
        Some(Self {
            reference: notes.get(REF_NAME)?.parse().ok()?,
            platform: Platform::from(descriptor.platform.as_ref()?),
            manifest: descriptor.digest,
            media_type: descriptor.media_type.clone(),
            manifest_size: descriptor.size,
            index_digest: notes.get(INDEX_DIGEST).and_then(|text| text.parse().ok()),
            pulled_at: UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds.unwrap_or(0)))
                .unwrap_or(UNIX_EPOCH),
            pulled_from: notes.get(PULLED_FROM).cloned(),
            tagged_from: notes.get(TAGGED_FROM).and_then(|text| text.parse().ok()),
            signature: notes
                .get(SIGNATURE)
                .and_then(|text| serde_json::from_str(text).ok()),
            version: notes
                .get(RECORD)
                .map_or(Some(1), |text| text.parse().ok())
                .unwrap_or(RECORD_VERSION),
            other: notes
                .iter()
                .filter(|(name, _)| !OURS.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        })
    }

    fn descriptor(&self) -> Descriptor {
        let seconds = self
            .pulled_at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut notes = self.other.clone();
        notes.insert(REF_NAME.to_owned(), self.reference.canonical());
        notes.insert(PULLED_AT.to_owned(), seconds.to_string());
        if self.version > 1 {
            notes.insert(RECORD.to_owned(), self.version.to_string());
        }
        if let Some(digest) = self.index_digest {
            notes.insert(INDEX_DIGEST.to_owned(), digest.to_string());
        }
        if let Some(registry) = &self.pulled_from {
            notes.insert(PULLED_FROM.to_owned(), registry.clone());
        }
        if let Some(reference) = &self.tagged_from {
            notes.insert(TAGGED_FROM.to_owned(), reference.canonical());
        }
        // Digests and a time: there is nothing here JSON cannot hold.
        if let Some(json) = self
            .signature
            .as_ref()
            .and_then(|signature| serde_json::to_string(signature).ok())
        {
            notes.insert(SIGNATURE.to_owned(), json);
        }
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.manifest,
            size: self.manifest_size,
            platform: Some(DescriptorPlatform {
                architecture: self.platform.architecture.clone(),
                os: self.platform.os.clone(),
                variant: self.platform.variant.clone(),
            }),
            annotations: Some(notes),
            artifact_type: None,
            urls: None,
        }
    }
}
