//! Images: what is in the store, and how it gets there and out.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use microagent_image::{
    Credential, Credentials, Digest, ImageDetails, ImageEvent, ImageRecord, ImageStore,
    ImportOptions, Platform, PullOptions, PullPolicy, Reference, RegistryOptions, Removed,
};

use crate::{auth, config::Config, error::Result, workspaces::manifest::Manifest};

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
        .filter_map(|entry| Some(Manifest::read(&entry.path()).ok()?.image.digest))
        .filter_map(|digest| digest.parse().ok())
        .collect()
}

/// How registries are reached and who asks, by the configuration.
pub(crate) fn pull_options(config: &Config, platform: Platform) -> Result<PullOptions> {
    let mut registry = RegistryOptions::default();
    registry
        .insecure_registries
        .clone_from(&config.insecure_registries);
    registry.proxy.clone_from(&config.proxy);
    let options = PullOptions::new().platform(platform).registry(registry);
    if config.auth_files.is_empty() {
        return Ok(options);
    }
    Ok(options.credentials(Arc::new(FromFiles {
        files: config.auth_files.clone(),
    })))
}

/// Credentials from the files the caller named, read when a registry asks.
struct FromFiles {
    files: Vec<std::path::PathBuf>,
}

impl Credentials for FromFiles {
    fn credential(&self, registry: &str) -> std::result::Result<Option<Credential>, String> {
        auth::find(&self.files, registry)
    }
}
