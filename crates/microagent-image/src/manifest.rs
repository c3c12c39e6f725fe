//! Manifests and indexes, OCI and Docker, as read from anyone: bounded, checked, reduced to what we use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::platform::Platform;

/// The largest manifest or index accepted, in bytes (the distribution specification's advice).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The most layers accepted; overlay-based engines stop at 127.
pub const MAX_LAYERS: usize = 512;
/// The most manifests accepted in one index.
pub const MAX_MANIFESTS: usize = 1024;
/// How deep indexes may nest.
pub const MAX_NESTING: usize = 4;
/// The largest layer accepted, in bytes as stored.
pub const MAX_LAYER: u64 = 64 << 30;
/// The most other places of one layer that are looked at.
const MAX_URLS: usize = 8;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What artifacts had of their own before they became image manifests with an `artifactType`.
const ARTIFACT_MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// The media types asked for, as an `Accept` header.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How a layer's tar stream is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// Guesses from the first bytes of a file; what has no known magic is taken as plain.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd stream may open with a skippable frame.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    pub(crate) fn oci_media_type(self) -> &'static str {
        match self {
            Self::None => OCI_LAYER,
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A pointer to content: what it is, its name and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// In an index: what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What kind of artifact the manifest describes, where it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Where else the content is, for layers that registries may not hand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}

/// A descriptor's platform as written; [`Platform`] is the normalised form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl From<&DescriptorPlatform> for Platform {
    fn from(platform: &DescriptorPlatform) -> Self {
        Self::new(
            &platform.os,
            &platform.architecture,
            platform.variant.as_deref(),
        )
    }
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the layer as stored.
    pub digest: Digest,
    /// Its size as stored, in bytes.
    pub size: u64,
    /// How it is stored.
    pub compression: Compression,
    /// Where else it is, should the registry not have it (a layer that may not be handed on).
    pub urls: Vec<String>,
}

/// The manifest of one image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its own media type.
    pub media_type: &'static str,
    /// Where the image's configuration is.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Layer>,
}

/// An index (or Docker manifest list): one image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its own media type.
    pub media_type: &'static str,
    /// What it points to; attestations and other artifacts are already left out.
    pub manifests: Vec<Descriptor>,
    /// Entries that cannot be read: no fault of the others.
    pub unreadable: Vec<Unreadable>,
}

/// An entry of an index that names no content of a kind that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What it says it is for, if that can be read.
    pub platform: Option<DescriptorPlatform>,
    /// What is wrong with it.
    pub reason: String,
}

/// What a registry or a layout gives under an image's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

impl Document {
    /// The document's media type, as a registry wants to hear it.
    #[must_use]
    pub fn media_type(&self) -> &'static str {
        match self {
            Self::Manifest(manifest) => manifest.media_type,
            Self::Index(index) => index.media_type,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(borrow)]
    manifests: Option<Vec<&'a RawValue>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index, whichever it is.
///
/// # Errors
/// [`ImageError::BadManifest`], with the reason: too large, no JSON, schema 1, an artifact that is no
/// image, a layer of an unknown media type, contradictory or missing fields.
pub fn parse(bytes: &[u8]) -> Result<Document> {
    parse_as(bytes, None)
}

/// Like [`parse`], where the transport said what the document is: `content_type` must agree with it.
///
/// # Errors
/// As [`parse`].
pub fn parse_as(bytes: &[u8], content_type: Option<&str>) -> Result<Document> {
    let refuse = |reason: String| ImageError::BadManifest {
        what: "manifest".into(),
        reason,
    };
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(refuse(format!("it is larger than {MAX_MANIFEST} bytes")));
    }
    let raw: Raw<'_> = serde_json::from_slice(bytes).map_err(|error| {
        let web = content_type.is_some_and(|value| value.trim_start().starts_with("text/html"));
        refuse(match web {
            true => "it cannot be read: what came is a web page; the host is no registry, or a proxy or a login page stands before it".into(),
            false => format!("it cannot be read: {}", clip(&error.to_string())),
        })
    })?;
    if raw.schema_version == 1 || (raw.fs_layers.is_some() && raw.layers.is_none()) {
        return Err(refuse(
            "it is a Docker schema 1 manifest, a format that cannot be verified and was retired in 2017; push the image again with a current tool".into(),
        ));
    }
    if raw.schema_version != 2 {
        return Err(refuse(format!(
            "its schema version {} is unknown",
            raw.schema_version
        )));
    }
    let own = raw.media_type.as_deref().unwrap_or_default();
    if let Some(artifact) = raw
        .artifact_type
        .as_deref()
        .or((own == ARTIFACT_MANIFEST).then_some(own))
    {
        return Err(refuse(format!(
            "it is an artifact of type `{}`, not an image",
            clip(artifact)
        )));
    }
    // A document that is both could be read as one image by us and as another by someone else.
    let is_index = match (&raw.manifests, &raw.layers, &raw.config) {
        (Some(_), None, None) => true,
        (None, Some(_), Some(_)) => false,
        (None, Some(_), None) => return Err(refuse("it has layers but no config".into())),
        (None, None, _) => return Err(refuse("it has neither layers nor manifests".into())),
        (Some(_), _, _) => {
            return Err(refuse(
                "it has both manifests and layers or a config, so it is ambiguous".into(),
            ));
        }
    };
    let media_type = media_type_of(&raw, is_index, content_type).map_err(refuse)?;
    if is_index {
        read_index(raw, media_type).map_err(refuse)
    } else {
        read_manifest(raw, media_type).map_err(refuse)
    }
}

fn media_type_of(
    raw: &Raw<'_>,
    is_index: bool,
    content_type: Option<&str>,
) -> std::result::Result<&'static str, String> {
    let content_type = content_type
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        // What is said by somebody who knows nothing of registries, a file server or a proxy, is no statement.
        .filter(|value| value.starts_with("application/vnd."));
    let known = if is_index {
        [OCI_INDEX, DOCKER_LIST]
    } else {
        [OCI_MANIFEST, DOCKER_MANIFEST]
    };
    let mut said = None;
    for value in [raw.media_type.as_deref(), content_type.as_deref()]
        .into_iter()
        .flatten()
    {
        let Some(known) = known.into_iter().find(|known| *known == value) else {
            return Err(format!(
                "its media type `{}` does not fit an image {}",
                clip(value),
                if is_index { "index" } else { "manifest" }
            ));
        };
        if *said.get_or_insert(known) != known {
            return Err("its media type contradicts what the registry said it is".into());
        }
    }
    Ok(said.unwrap_or(known[0]))
}

fn read_index(raw: Raw<'_>, media_type: &'static str) -> std::result::Result<Document, String> {
    let manifests = raw.manifests.unwrap_or_default();
    if manifests.len() > MAX_MANIFESTS {
        return Err(format!("it lists more than {MAX_MANIFESTS} manifests"));
    }
    let mut index = Index {
        media_type,
        manifests: Vec::new(),
        unreadable: Vec::new(),
    };
    for entry in manifests {
        match serde_json::from_str::<Descriptor>(entry.get()) {
            Ok(entry) if is_image(&entry) => index.manifests.push(entry),
            Ok(_) => {}
            Err(error) => index.unreadable.push(Unreadable {
                platform: platform_of(entry),
                reason: clip(&error.to_string()),
            }),
        }
    }
    Ok(Document::Index(index))
}

fn is_image(entry: &Descriptor) -> bool {
    !is_attestation(entry)
        && entry.artifact_type.is_none()
        && matches!(
            entry.media_type.as_str(),
            "" | OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST
        )
}

/// What an entry that cannot be read is for.
fn platform_of(entry: &RawValue) -> Option<DescriptorPlatform> {
    #[derive(Deserialize)]
    struct For {
        platform: Option<DescriptorPlatform>,
    }
    serde_json::from_str::<For>(entry.get()).ok()?.platform
}

/// BuildKit puts provenance beside the images, under a platform nobody has.
fn is_attestation(entry: &Descriptor) -> bool {
    entry
        .annotations
        .as_ref()
        .is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"))
        || entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown")
}

fn read_manifest(raw: Raw<'_>, media_type: &'static str) -> std::result::Result<Document, String> {
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err("it has no config or no layers".into());
    };
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Err(format!(
            "its config has the media type `{}`, so it is an artifact, not an image",
            clip(&config.media_type)
        ));
    }
    if config.size > crate::config::MAX_CONFIG {
        return Err(format!(
            "its config is larger than {} bytes",
            crate::config::MAX_CONFIG
        ));
    }
    if layers.len() > MAX_LAYERS {
        return Err(format!("it has more than {MAX_LAYERS} layers"));
    }
    let mut total = 0u64;
    let mut read = Vec::with_capacity(layers.len());
    for (number, layer) in layers.into_iter().enumerate() {
        let compression = layer_compression(&layer.media_type)
            .map_err(|why| format!("its layer {} ({}) {why}", number + 1, layer.digest.short()))?;
        if layer.size > MAX_LAYER {
            return Err(format!(
                "its layer {} ({}) is larger than {MAX_LAYER} bytes",
                number + 1,
                layer.digest.short()
            ));
        }
        total = total.saturating_add(layer.size);
        read.push(Layer {
            digest: layer.digest,
            size: layer.size,
            compression,
            urls: match is_foreign(&layer.media_type) {
                true => layer.urls.into_iter().flatten().take(MAX_URLS).collect(),
                false => Vec::new(),
            },
        });
    }
    if total > 4 * MAX_LAYER {
        return Err(format!(
            "its layers are together larger than {} bytes",
            4 * MAX_LAYER
        ));
    }
    Ok(Document::Manifest(Manifest {
        media_type,
        config,
        layers: read,
    }))
}

/// Layers that registries may not hand on are plain layers otherwise (OCI image specification, "Non-Distributable
/// Layers"; Docker calls them foreign).
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".layer.nondistributable.") || media_type.contains(".rootfs.foreign.")
}

fn layer_compression(media_type: &str) -> std::result::Result<Compression, String> {
    let plain = media_type
        .replace(".layer.nondistributable.", ".layer.")
        .replace(".rootfs.foreign.", ".rootfs.");
    match plain.as_str() {
        OCI_LAYER | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other if other.contains("encrypted") => Err(format!(
            "is encrypted (`{}`), which is not supported",
            clip(other)
        )),
        other => Err(format!("has the unknown media type `{}`", clip(other))),
    }
}

impl Index {
    /// The descriptors that may serve `wanted`, best first. Those without a platform come last: only
    /// their config tells.
    #[must_use]
    pub fn candidates(&self, wanted: &Platform) -> Vec<&Descriptor> {
        let mut ranked: Vec<(u8, &Descriptor)> = self
            .manifests
            .iter()
            .filter_map(|entry| Some((fit(entry.platform.as_ref(), wanted)?, entry)))
            .collect();
        ranked.sort_by_key(|(fit, _)| *fit);
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Of the entries that cannot be read, one that may be what is `wanted`.
    #[must_use]
    pub fn unreadable(&self, wanted: &Platform) -> Option<&Unreadable> {
        self.unreadable
            .iter()
            .find(|entry| fit(entry.platform.as_ref(), wanted).is_some())
    }

    /// The platforms it names, for messages.
    #[must_use]
    pub fn platforms(&self) -> Vec<Platform> {
        let mut all: Vec<Platform> = self
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::from)
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// How well an entry for `platform` serves `wanted`, best first; what does not say what it is for may, last of all.
fn fit(platform: Option<&DescriptorPlatform>, wanted: &Platform) -> Option<u8> {
    match platform {
        Some(platform) if !platform.os.is_empty() => Platform::from(platform).fit(wanted),
        _ => Some(u8::MAX),
    }
}

#[cfg(test)]
mod tests;
