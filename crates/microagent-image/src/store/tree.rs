//! Images, their layers, and which other images have the same ones.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{ImageRecord, ImageStore, LayerRecord, provenance};
use crate::digest::Digest;
use crate::error::Result;
use crate::platform::Platform;
use crate::reference::Reference;

/// Images and what they share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageTree {
    /// Each image, whatever its names.
    pub images: Vec<TreeImage>,
}

/// An image and its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeImage {
    /// Its digest.
    pub digest: Digest,
    /// Its names.
    pub references: Vec<Reference>,
    /// What it was built for.
    pub platform: Platform,
    /// Its layers, bottom first.
    pub layers: Vec<TreeLayer>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeLayer {
    /// What it is.
    #[serde(flatten)]
    pub layer: LayerRecord,
    /// Other images of the store that have it too, by one of their names.
    pub also_in: Vec<Reference>,
}

impl ImageStore {
    /// The images and which layers they share with which others; `only` those that it names, if it names
    /// any.
    ///
    /// # Errors
    /// When the store cannot be read, or one of `only` is not there.
    pub fn tree(&self, only: &[String]) -> Result<ImageTree> {
        let entries = self.entries()?;
        let mut wanted = BTreeSet::new();
        for name in only {
            wanted.extend(self.find_in(name, &entries)?.iter().map(|it| it.manifest));
        }
        let mut images: BTreeMap<Digest, Vec<ImageRecord>> = BTreeMap::new();
        for record in self.list()? {
            images.entry(record.digest).or_default().push(record);
        }
        let mut owners: BTreeMap<Digest, BTreeSet<Digest>> = BTreeMap::new();
        for (image, records) in &images {
            for layer in records.iter().flat_map(|record| &record.layers) {
                owners.entry(layer.digest).or_default().insert(*image);
            }
        }
        let also_in = |layer: &LayerRecord, image: &Digest| -> Vec<Reference> {
            let others = owners.get(&layer.digest).into_iter().flatten();
            others
                .filter(|other| *other != image)
                .filter_map(|other| {
                    // By a name that people gave it, if it has one.
                    let mut names = images.get(other)?.iter().map(|it| &it.reference);
                    let first = names.clone().next()?;
                    let tagged = names.find(|name| name.digest().is_none());
                    Some(tagged.unwrap_or(first).clone())
                })
                .collect()
        };
        let mut tree = Vec::new();
        for (image, records) in &images {
            let Some(first) = records.first() else {
                continue;
            };
            if !only.is_empty() && !wanted.contains(image) {
                continue;
            }
            let layers = provenance::layers(first, &self.config(first)?);
            tree.push(TreeImage {
                digest: *image,
                references: records.iter().map(|it| it.reference.clone()).collect(),
                platform: first.platform.clone(),
                layers: layers
                    .into_iter()
                    .map(|layer| TreeLayer {
                        also_in: also_in(&layer, image),
                        layer,
                    })
                    .collect(),
            });
        }
        tree.sort_by(|a, b| (&a.references, &a.platform).cmp(&(&b.references, &b.platform)));
        Ok(ImageTree { images: tree })
    }
}
