//! What `docker save` writes: `manifest.json`, configurations, and layers that have no manifest yet.

use serde::{Deserialize, Serialize};

use super::Import;
use super::container::Container;
use super::layout::same_name;
use crate::choose::Chosen;
use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::manifest::{
    self, Compression, Document, MAX_LAYERS, MAX_MANIFEST, Manifest, OCI_CONFIG, OCI_MANIFEST,
};
use crate::store::{ImageRecord, StagedBlob, Transaction};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Import<'_> {
    pub(super) fn saved(
        &self,
        transaction: Transaction,
        container: &Container,
    ) -> Result<ImageRecord> {
        let bytes = container
            .read("manifest.json", MAX_MANIFEST)?
            .ok_or_else(|| container.refuse("it has no `manifest.json`"))?;
        let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(|error| {
            container.refuse(format!(
                "its `manifest.json` cannot be read: {}",
                clip(&error.to_string())
            ))
        })?;
        let item = self.pick(container, items)?;
        if item.layers.len() > MAX_LAYERS {
            return Err(container.refuse(format!("it has more than {MAX_LAYERS} layers")));
        }
        let reference = self.name(item.repo_tags.as_deref().unwrap_or_default())?;
        let config_bytes = container.read(&item.config, MAX_CONFIG)?.ok_or_else(|| {
            container.refuse(format!(
                "its configuration `{}` is missing",
                clip(&item.config)
            ))
        })?;
        let config = ImageConfig::parse(&config_bytes)?;
        if config.platform.fit(&self.options.platform).is_none() {
            return Err(ImageError::NoSuchPlatform {
                image: reference.to_string(),
                wanted: self.options.platform.clone(),
                available: config.platform.to_string(),
            });
        }
        if config.diff_ids.len() != item.layers.len() {
            return Err(container.refuse(format!(
                "its configuration speaks of {} layers and its manifest of {}",
                config.diff_ids.len(),
                item.layers.len()
            )));
        }
        let (layers, blobs) = self.saved_layers(&transaction, container, &item, &config)?;
        let manifest_bytes = manifest_json(&config_bytes, &layers);
        let Document::Manifest(manifest) = manifest::parse(&manifest_bytes)? else {
            return Err(container.refuse("its manifest cannot be made"));
        };
        let chosen = Chosen {
            digest: Digest::of(&manifest_bytes),
            manifest_bytes,
            manifest,
            config,
            config_bytes,
            index_digest: None,
        };
        self.resolved(&reference, &chosen);
        let lock = self
            .store
            .lock_image(&transaction, chosen.digest, self.events)?;
        let record = self.publish(&transaction, &reference, &chosen, blobs)?;
        drop(lock);
        self.finish(transaction, record)
    }

    fn pick(&self, container: &Container, mut items: Vec<Item>) -> Result<Item> {
        let names = |item: &Item| item.repo_tags.clone().unwrap_or_default();
        let listing = |items: &[Item]| items.iter().flat_map(names).collect::<Vec<_>>().join(", ");
        let wanted = match (&self.options.select, &self.options.reference) {
            (Some(select), _) => Some(select.clone()),
            (None, Some(reference)) if items.len() > 1 => Some(reference.canonical()),
            _ => None,
        };
        let at = match wanted {
            Some(wanted) => items
                .iter()
                .position(|item| names(item).iter().any(|name| same_name(name, &wanted)))
                .ok_or_else(|| {
                    container.refuse(format!(
                        "it has no image `{}`; it has: {}",
                        clip(&wanted),
                        listing(&items)
                    ))
                })?,
            None if items.len() == 1 => 0,
            None if items.is_empty() => return Err(container.refuse("it holds no image")),
            None => {
                return Err(container.refuse(format!(
                    "it has several images; select one of: {}",
                    listing(&items)
                )));
            }
        };
        Ok(items.swap_remove(at))
    }

    /// Copies the layers; their digests come out of that, there is nothing to hold them against but
    /// the configuration's digests of unpacked layers.
    fn saved_layers(
        &self,
        transaction: &Transaction,
        container: &Container,
        item: &Item,
        config: &ImageConfig,
    ) -> Result<(Vec<LayerOut>, Vec<StagedBlob>)> {
        let mut layers: Vec<LayerOut> = Vec::new();
        let mut blobs: Vec<StagedBlob> = Vec::new();
        for (at, (name, diff_id)) in item.layers.iter().zip(&config.diff_ids).enumerate() {
            let mut part = container.find(name)?.ok_or_else(|| {
                container.refuse(format!("its layer `{}` is missing", clip(name)))
            })?;
            let compression = Compression::sniff(&part.head()?);
            let size = part.size();
            let staged = transaction.path(&format!("layer-{at}"));
            let digest = self.copy_layer(&mut part, &staged, *diff_id)?;
            // A compressed layer is held against this when the disk is built.
            if compression == Compression::None && digest != *diff_id {
                return Err(ImageError::DigestMismatch {
                    what: format!(
                        "layer {} of {} ({diff_id}) in {}",
                        at + 1,
                        item.layers.len(),
                        self.path.display()
                    ),
                    expected: *diff_id,
                    actual: digest,
                });
            }
            layers.push(LayerOut {
                media_type: compression.oci_media_type(),
                digest,
                size,
            });
            if blobs.iter().all(|(other, _)| *other != digest) {
                blobs.push((digest, staged));
            }
        }
        Ok((layers, blobs))
    }
}

/// A layer as a manifest writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerOut {
    pub(super) media_type: &'static str,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// The OCI manifest of an image that came without one. The same content gives the same bytes.
pub(super) fn manifest_json(config: &[u8], layers: &[LayerOut]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out<'a> {
        schema_version: u32,
        media_type: &'static str,
        config: LayerOut,
        layers: &'a [LayerOut],
    }
    let out = Out {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: LayerOut {
            media_type: OCI_CONFIG,
            digest: Digest::of(config),
            size: config.len() as u64,
        },
        layers,
    };
    // Strings, numbers and lists: there is nothing here JSON cannot hold.
    serde_json::to_vec(&out).unwrap_or_default()
}

/// A manifest of layers that were made here.
pub(super) fn read_back(bytes: &[u8]) -> Result<Manifest> {
    match manifest::parse(bytes)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(ImageError::BadManifest {
            what: "manifest".into(),
            reason: "it is an index".into(),
        }),
    }
}
