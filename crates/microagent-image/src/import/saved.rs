//! What `docker save` writes: `manifest.json`, configurations, and layers that have no manifest yet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Import;
use super::container::{Container, Part};
use super::layout::same_name;
use crate::choose::Chosen;
use crate::config::{ImageConfig, MAX_CONFIG};
use crate::digest::Digest;
use crate::error::{ImageError, Result, clip};
use crate::manifest::{
    self, Compression, Document, MAX_LAYERS, MAX_MANIFEST, Manifest, OCI_CONFIG, OCI_MANIFEST,
};
use crate::store::{ImageRecord, Transaction};

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
        let items =
            items(container)?.ok_or_else(|| container.refuse("it has no `manifest.json`"))?;
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
        let layers = saved_layers(container, &item, &config)?;
        let manifest_bytes = manifest_json(&config_bytes, &layers);
        let chosen = Chosen {
            digest: Digest::of(&manifest_bytes),
            manifest: read_back(&manifest_bytes)?,
            manifest_bytes,
            config,
            config_bytes,
            index_digest: None,
        };
        self.store_image(transaction, &reference, &chosen, &|at, _| {
            saved_layer(container, &item.layers[at])
        })
    }

    /// The names of the images that `docker save` wrote.
    pub(super) fn saved_names(&self, container: &Container) -> Result<BTreeSet<String>> {
        let items = items(container)?.unwrap_or_default();
        Ok(items
            .into_iter()
            .filter_map(|item| item.repo_tags)
            .flatten()
            .collect())
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
}

fn items(container: &Container) -> Result<Option<Vec<Item>>> {
    let Some(bytes) = container.read("manifest.json", MAX_MANIFEST)? else {
        return Ok(None);
    };
    let items = serde_json::from_slice(&bytes).map_err(|error| {
        container.refuse(format!(
            "its `manifest.json` cannot be read: {}",
            clip(&error.to_string())
        ))
    })?;
    Ok(Some(items))
}

/// What the manifest says of the layers. A plain layer's digest is the one the configuration promises; a
/// compressed layer's is found by reading it, and the configuration's is held against what it unpacks to.
fn saved_layers(container: &Container, item: &Item, config: &ImageConfig) -> Result<Vec<LayerOut>> {
    item.layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(name, diff_id)| {
            let part = saved_layer(container, name)?;
            let compression = Compression::sniff(&part.head()?);
            let digest = match compression {
                Compression::None => *diff_id,
                Compression::Gzip | Compression::Zstd => part.digest()?,
            };
            Ok(LayerOut {
                media_type: compression.oci_media_type(),
                digest,
                size: part.size(),
            })
        })
        .collect()
}

fn saved_layer(container: &Container, name: &str) -> Result<Part> {
    container
        .find(name)?
        .ok_or_else(|| container.refuse(format!("its layer `{}` is missing", clip(name))))
}

/// A layer as a manifest writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerOut {
    pub(crate) media_type: &'static str,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The OCI manifest of an image that came without one. The same content gives the same bytes.
pub(crate) fn manifest_json(config: &[u8], layers: &[LayerOut]) -> Vec<u8> {
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
