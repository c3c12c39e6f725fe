//! OCI layouts, as directories and as archives.

use std::collections::BTreeSet;

use super::container::Container;
use super::{Import, check_layout_version};
use crate::choose::{Fetched, choose};
use crate::digest::Digest;
use crate::error::Result;
use crate::manifest::{self, Descriptor, Document, MAX_MANIFEST};
use crate::reference::Reference;
use crate::store::{ImageRecord, Transaction};

/// containerd's full name of an image; stands beside the bare tag where `docker save` wrote the layout.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl Import<'_> {
    pub(super) fn layout(
        &self,
        transaction: Transaction,
        container: &Container,
    ) -> Result<ImageRecord> {
        let marker = container
            .read("oci-layout", 4096)?
            .ok_or_else(|| container.refuse("it has an `index.json` but no `oci-layout`"))?;
        check_layout_version(container.path(), &marker)?;
        let bytes = container
            .read("index.json", MAX_MANIFEST)?
            .ok_or_else(|| container.refuse("it has no `index.json`"))?;
        let Document::Index(mut index) = manifest::parse(&bytes)? else {
            return Err(container.refuse("its `index.json` is not an index"));
        };
        if let ([], [first, ..]) = (&index.manifests[..], &index.unreadable[..]) {
            let reason = &first.reason;
            return Err(container.refuse(format!("it lists no image that can be read: {reason}")));
        }
        self.narrow(container, &mut index.manifests)?;
        let names: Vec<String> = index.manifests.iter().flat_map(own_names).collect();
        let reference = self.name(&names)?;
        let top = match &index.manifests[..] {
            // One entry is the image itself, so its digest is what the name stands for.
            [only] if index.unreadable(&self.options.platform).is_none() => {
                crate::choose::Documents::document(container, only.digest)?
            }
            _ => Fetched {
                digest: Digest::of(&bytes),
                bytes,
                document: Document::Index(index),
            },
        };
        let image = reference.to_string();
        let chosen = choose(container, top, &image, &self.options.platform)?;
        self.store_image(transaction, &reference, &chosen, &|_, layer| {
            container.blob(layer.digest)
        })
    }

    /// The names of the images in a layout, the fullest of each.
    pub(super) fn layout_names(&self, container: &Container) -> Result<BTreeSet<String>> {
        let Some(bytes) = container.read("index.json", MAX_MANIFEST)? else {
            return Ok(BTreeSet::new());
        };
        let Document::Index(index) = manifest::parse(&bytes)? else {
            return Err(container.refuse("its `index.json` is not an index"));
        };
        Ok(index
            .manifests
            .iter()
            .filter_map(|entry| own_names(entry).into_iter().next())
            .collect())
    }

    /// Leaves the entries of one image: the selected, or the one of the given name, or the only one.
    fn narrow(&self, container: &Container, entries: &mut Vec<Descriptor>) -> Result<()> {
        if entries.is_empty() {
            return Err(container.refuse("it holds no image"));
        }
        let all: BTreeSet<String> = entries.iter().flat_map(own_names).collect();
        // A containerd name and a bare tag of one entry are one name.
        let images: BTreeSet<Option<String>> = entries
            .iter()
            .map(|entry| own_names(entry).into_iter().next())
            .collect();
        let listing = || all.iter().cloned().collect::<Vec<_>>().join(", ");
        if let Some(select) = &self.options.select {
            entries.retain(|entry| own_names(entry).iter().any(|name| same_name(name, select)));
            if entries.is_empty() {
                return Err(container.refuse(format!(
                    "it has no image `{}`; it has: {}",
                    crate::error::clip(select),
                    listing()
                )));
            }
            return Ok(());
        }
        if images.len() <= 1 {
            return Ok(());
        }
        if let Some(reference) = &self.options.reference {
            let wanted = reference.canonical();
            let matching: Vec<Descriptor> = entries
                .iter()
                .filter(|entry| own_names(entry).iter().any(|name| same_name(name, &wanted)))
                .cloned()
                .collect();
            if !matching.is_empty() {
                *entries = matching;
                return Ok(());
            }
        }
        Err(container.refuse(format!(
            "it has several images; select one of: {}",
            listing()
        )))
    }
}

/// The names an entry bears, the fullest first.
fn own_names(entry: &Descriptor) -> Vec<String> {
    let Some(notes) = &entry.annotations else {
        return Vec::new();
    };
    [FULL_NAME, REF_NAME]
        .iter()
        .filter_map(|key| notes.get(*key))
        .cloned()
        .collect()
}

pub(super) fn same_name(name: &str, wanted: &str) -> bool {
    name == wanted
        || matches!(
            (name.parse::<Reference>(), wanted.parse::<Reference>()),
            (Ok(a), Ok(b)) if a == b
        )
}
