//! Images: what is in the store, and how it gets there and out.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use microagent_image::{
    Digest, ImageDetails, ImageEvent, ImageRecord, ImageStore, ImportOptions, Platform,
    PullOptions, PullPolicy, Reference, Removed,
};

use crate::{auth::FromConfig, config::Config, error::Result, registries, workspace};

/// The images of a state directory.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    config: &'a Config,
}

impl<'a> Images<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    fn store(&self) -> Result<ImageStore> {
        Ok(ImageStore::open(self.config.images_dir())?)
    }

    /// Pulls an image from its registry and builds its disk.
    ///
    /// # Errors
    /// When the reference is none, the registry says no, or the content is not what it claims.
    pub fn pull(
        &self,
        reference: &str,
        platform: Option<Platform>,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        let reference: Reference = reference.parse()?;
        let store = self.store()?;
        let options = pull_options(self.config, platform.unwrap_or_else(Platform::host))?;
        let record = store.ensure(&reference, PullPolicy::Always, &options, events)?;
        store.base_disk(&record, events)?;
        Ok(record)
    }

    /// Brings in a root file system's tar, an OCI archive or layout, or what `docker save` writes.
    ///
    /// # Errors
    /// When the file is none of these, or lies about itself.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        Ok(self.store()?.import(path, options, events)?)
    }

    /// Every image.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        Ok(self.store()?.list()?)
    }

    /// One image by reference or digest, with its configuration.
    ///
    /// # Errors
    /// When none matches, or more than one.
    pub fn inspect(&self, name: &str) -> Result<ImageDetails> {
        Ok(self.store()?.inspect(name)?)
    }

    /// Removes a reference, and what only it needed. What workspaces are made of stays.
    ///
    /// # Errors
    /// When none matches, or more than one.
    pub fn remove(&self, name: &str) -> Result<Removed> {
        Ok(self.store()?.remove(name, &in_use(self.config))?)
    }
}

/// The images that workspaces are made of.
fn in_use(config: &Config) -> BTreeSet<Digest> {
    let Ok(entries) = fs::read_dir(config.workspaces_dir()) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| workspace::image_of(&entry.path()))
        .filter_map(|digest| digest.parse().ok())
        .collect()
}

/// How registries are reached and who asks, by the configuration.
pub(crate) fn pull_options(config: &Config, platform: Platform) -> Result<PullOptions> {
    Ok(PullOptions::new()
        .platform(platform)
        .registry(registries::registry_options(config)?)
        .credentials(Arc::new(FromConfig(config.clone()))))
}
