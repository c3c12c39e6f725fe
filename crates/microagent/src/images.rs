//! Images: what is in the store, and how it gets there and out.

mod list;
mod needs;
mod rootfs;
mod transfer;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use microagent_image::{
    Digest, Freshness, ImageDetails, ImageEvent, ImageHistory, ImageRecord, ImageStore, ImageTree,
    ImportOptions, MemoryUse, Platform, PruneOptions, Pruned, PullOptions, PullPolicy, Reference,
    Removed, StoreVerification, Tagged, Untagged, VerifyKey,
};

use microagent_protocol::supervisor::ErrorReport;
use serde::Serialize;

pub use self::list::{
    ImageFilter, ImageSortKey, ImageSummary, InvalidImageFilter, InvalidImageSortKey,
};
pub(crate) use self::needs::WorkspaceNeeds;
pub use self::rootfs::{BaseSource, Rootfs, RootfsOptions};
use crate::{
    auth::FromConfig,
    config::Config,
    error::{Error, Result},
    parallel, registries,
};

/// How many images are pulled at once; each downloads several layers at once.
const PULLS_AT_ONCE: usize = 3;
/// How many registries are asked at once about the state of an image.
const ASKED_AT_ONCE: usize = 4;

/// An image that came in, and the memory it took.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageArrival {
    /// The image.
    #[serde(flatten)]
    pub image: ImageRecord,
    /// What was taken, and the most that may be.
    pub memory: MemoryUse,
}

impl ImageArrival {
    /// What was just brought in by this process.
    fn of(image: ImageRecord) -> Self {
        Self {
            memory: MemoryUse::of(&image),
            image,
        }
    }
}

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

/// How images are pulled.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImagePullOptions {
    /// Which of a multi-platform image's images; the host's by default.
    pub platform: Option<Platform>,
    /// The key that they must be signed with; signatures are not looked at without.
    pub verify_key: Option<VerifyKey>,
}

impl ImagePullOptions {
    /// This host's platform, and no look at signatures.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for another platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// The same for images that are signed with this key.
    #[must_use]
    pub fn verify_key(mut self, key: VerifyKey) -> Self {
        self.verify_key = Some(key);
        self
    }
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
        options: &ImagePullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageArrival> {
        let reference: Reference = reference.parse()?;
        let store = self.store()?;
        let platform = options.platform.clone();
        let pull = pull_options(self.config, platform.unwrap_or_else(Platform::host))?;
        let options = match &options.verify_key {
            Some(key) => pull.verify_key(key.clone()),
            None => pull,
        };
        // What comes in stays until its disk is there.
        let _hold = store.hold()?;
        let record = store.ensure(&reference, PullPolicy::Always, &options, events)?;
        store.base_disk(&record, events)?;
        Ok(ImageArrival::of(record))
    }

    /// Pulls several images, some at a time; layers that they share come once. One that fails does not
    /// keep the others. `events` hears which of `references` each event is about.
    pub fn pull_all(
        &self,
        references: &[String],
        options: &ImagePullOptions,
        events: &(dyn Fn(&str, ImageEvent) + Sync),
    ) -> Vec<Result<ImageArrival>> {
        parallel::map(references, PULLS_AT_ONCE, |reference| {
            self.pull(reference, options, &|event| {
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
    ) -> Result<ImageArrival> {
        let record = self.store()?.import(path, options, events)?;
        Ok(ImageArrival::of(record))
    }

    /// Every image, with what it takes and which workspaces are made of it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let store = self.store()?;
        let usage = store.usage()?;
        let workspaces = needs::known(self.config);
        Ok(list::summaries(store.list()?, &usage.images, &workspaces))
    }

    /// The names of all images. Looks only into the index, and makes nothing where there is none.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn names(&self) -> Result<Vec<Reference>> {
        Ok(ImageStore::names(&self.config.images_dir())?)
    }

    /// Gives an image one more name. If that stood for another image, it does no longer.
    ///
    /// # Errors
    /// When none matches, or more than one, or the new name is none.
    pub fn tag(&self, source: &str, target: &str) -> Result<Tagged> {
        Ok(self.store()?.tag(source, &target.parse()?)?)
    }

    /// Takes a name away. An image that has no other stays under its digest.
    ///
    /// # Errors
    /// When there is no such name, or it is a digest.
    pub fn untag(&self, reference: &str) -> Result<Untagged> {
        Ok(self.store()?.untag(&reference.parse()?)?)
    }

    /// How an image came to be, as its builder wrote it down.
    ///
    /// # Errors
    /// When none matches, or more than one.
    pub fn history(&self, name: &str) -> Result<ImageHistory> {
        Ok(self.store()?.history(name)?)
    }

    /// The images, or those of `only`, and which layers they share with which others.
    ///
    /// # Errors
    /// When the store cannot be read, or one of `only` is not there.
    pub fn tree(&self, only: &[String]) -> Result<ImageTree> {
        Ok(self.store()?.tree(only)?)
    }

    /// Reads every blob and disk of the images again, or of those of `only`, and names what is not as it
    /// was recorded.
    ///
    /// # Errors
    /// When the store cannot be read, or one of `only` is not there. What is damaged is in the result.
    pub fn verify(
        &self,
        only: &[String],
        events: &dyn Fn(ImageEvent),
    ) -> Result<StoreVerification> {
        Ok(self.store()?.verify(only, events)?)
    }

    /// Takes away what nobody needs. What a workspace is made of stays, and its image.
    ///
    /// # Errors
    /// While images come in, and when a workspace cannot be read, so that what it needs is not known.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned> {
        Ok(self.store()?.prune(options, &WorkspaceNeeds(self.config))?)
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
        let needs = WorkspaceNeeds(self.config);
        Ok(self.store()?.remove(name, &needs)?)
    }
}

/// How registries are reached and who asks, by the configuration.
pub(crate) fn pull_options(config: &Config, platform: Platform) -> Result<PullOptions> {
    Ok(PullOptions::new()
        .platform(platform)
        .registry(registries::registry_options(config)?)
        .credentials(Arc::new(FromConfig(config.clone())))
        .build_disk(true))
}
