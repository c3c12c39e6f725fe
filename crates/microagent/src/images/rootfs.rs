//! An image's root file system as one disk of the caller's.

use std::path::Path;

use microagent_image::{Digest, ImageEvent, Platform, PullPolicy, Reference, RootDisk};
use microagent_protocol::Mebibytes;
use serde::Serialize;

use super::{Images, pull_options};
use crate::error::{Error, Result};

/// How a root file system is written.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RootfsOptions {
    /// For which platform; the host's without.
    pub platform: Option<Platform>,
    /// How large the disk is; as small as it can be, and read-only, without.
    pub size: Option<Mebibytes>,
    /// Whether a name without a digest will do, which may stand for another image tomorrow.
    pub allow_mutable: bool,
    /// When the image is asked of its registry.
    pub pull: PullPolicy,
}

impl RootfsOptions {
    /// The defaults: this host's platform, a small read-only disk, and only names with digests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// A root file system that was written, and where it comes from.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Rootfs {
    /// The image.
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
    /// What it was built for.
    pub platform: Platform,
    /// Its layers, bottom first.
    pub layers: Vec<Digest>,
    /// Whether the image was here already or came for this.
    pub base_source: BaseSource,
    /// The file.
    #[serde(flatten)]
    pub disk: RootDisk,
}

/// Where an image was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseSource {
    /// In the store.
    Store,
    /// In its registry.
    Registry,
}

impl Images<'_> {
    /// Writes the root file system of an image as one ext4 file. The reference must name a digest, unless the options
    /// say otherwise.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a reference that can move; else when the image cannot be had or the disk not be written.
    pub fn build_rootfs(
        &self,
        reference: &Reference,
        options: &RootfsOptions,
        path: &Path,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Rootfs> {
        let store = self.store()?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let known = store.resolve(reference, &platform).unwrap_or_default();
        if reference.digest().is_none() && !options.allow_mutable {
            let now = known.map_or_else(String::new, |record| {
                format!(" (it is {} now)", reference.pinned(record.digest))
            });
            return Err(Error::invalid(
                "IMAGE",
                format!(
                    "{reference} may stand for another image tomorrow; write NAME@sha256:DIGEST{now}, or allow it with --allow-mutable"
                ),
            ));
        }
        let pulling = pull_options(self.config, platform)?;
        // Nothing of the image goes before its root file system is written.
        let _hold = store.hold()?;
        let record = store.ensure(reference, options.pull, &pulling, events)?;
        let was_here = known.is_some_and(|known| known.digest == record.digest);
        let size = options.size.map(|size| u64::from(size.0) << 20);
        let disk = store.write_disk(&record, path, size, events)?;
        Ok(Rootfs {
            digest: record.digest,
            platform: record.platform,
            layers: record.layers.iter().map(|layer| layer.digest).collect(),
            reference: record.reference,
            base_source: if was_here {
                BaseSource::Store
            } else {
                BaseSource::Registry
            },
            disk,
        })
    }
}
