//! Images: what is in the store, and how it gets there and out.

mod rootfs;
mod transfer;

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use microagent_image::{
    Digest, Freshness, ImageDetails, ImageEvent, ImageRecord, ImageStore, ImportOptions, Platform,
    PullOptions, PullPolicy, Reference, Removed,
};

use microagent_protocol::supervisor::ErrorReport;
use serde::Serialize;

pub use self::rootfs::{BaseSource, Rootfs, RootfsOptions};

use crate::{
    auth::FromConfig,
    config::Config,
    error::{Error, Result},
    parallel, registries,
    workspaces::manifest::Manifest,
};

/// How many images are pulled at once; each downloads several layers at once.
const PULLS_AT_ONCE: usize = 3;
/// How many registries are asked at once about the state of an image.
const ASKED_AT_ONCE: usize = 4;

/// An image of the store, and what its tag stands for now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OutdatedImage {
    /// Its name.
    pub reference: Reference,
    /// What it was built for.
    pub platform: Platform,
    /// What is here.
    pub digest: Digest,
    /// What is there.
    #[serde(flatten)]
    pub state: OutdatedState,
}

/// What a registry says about an image.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OutdatedState {
    /// The tag stands for what is here.
    Current,
    /// The tag stands for something else.
    Outdated {
        /// For this.
        remote_digest: Digest,
    },
    /// The registry could not be asked.
    Unknown {
        /// Why not.
        error: ErrorReport,
    },
}

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

    /// Pulls several images, some at a time; layers that they share come once. One that fails does not
    /// keep the others. `events` hears which of `references` each event is about.
    pub fn pull_all(
        &self,
        references: &[String],
        platform: Option<&Platform>,
        events: &(dyn Fn(&str, ImageEvent) + Sync),
    ) -> Vec<Result<ImageRecord>> {
        parallel::map(references, PULLS_AT_ONCE, |reference| {
            self.pull(reference, platform.cloned(), &|event| {
                events(reference, event);
            })
        })
    }

    /// Asks the registries what the tags of the images here stand for now; only documents are
    /// downloaded. What was imported, and what is named by a digest, is left out.
    ///
    /// # Errors
    /// When the store or the settings cannot be read, or one of `only` is not there. A registry that
    /// does not answer is a state of its images.
    pub fn outdated(&self, only: &[String]) -> Result<Vec<OutdatedImage>> {
        let store = self.store()?;
        let options = pull_options(self.config, Platform::host())?;
        let mut records = store.list()?;
        if !only.is_empty() {
            let mut wanted = BTreeSet::new();
            for name in only {
                wanted.insert(store.inspect(name)?.record.digest);
            }
            records.retain(|record| wanted.contains(&record.digest));
        }
        let asked = parallel::map(&records, ASKED_AT_ONCE, |record| {
            let state = match store.freshness(record, &options, &|_| {}) {
                Ok(Freshness::Pinned) => return None,
                Ok(Freshness::Current) => OutdatedState::Current,
                Ok(Freshness::Outdated { remote_digest }) => {
                    OutdatedState::Outdated { remote_digest }
                }
                Err(error) => OutdatedState::Unknown {
                    error: Error::from(error).report(),
                },
            };
            Some(OutdatedImage {
                reference: record.reference.clone(),
                platform: record.platform.clone(),
                digest: record.digest,
                state,
            })
        });
        Ok(asked.into_iter().flatten().collect())
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
    Ok(PullOptions::new()
        .platform(platform)
        .registry(registries::registry_options(config)?)
        .credentials(Arc::new(FromConfig(config.clone())))
        .build_disk(true))
}
