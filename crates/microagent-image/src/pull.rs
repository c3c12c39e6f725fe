//! From a reference to verified content in the store: resolve, choose the platform, download, publish.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::choose::{Documents, Fetched, choose};
use crate::config::MAX_CONFIG;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::event::ImageEvent;
use crate::manifest::{Descriptor, Layer, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Client, Credentials, RegistryOptions};
use crate::store::{self, Entry, ImageRecord, ImageStore, StagedBlob, Transaction};

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How an image is pulled.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct PullOptions {
    /// The platform to choose; the host's by default.
    pub platform: Platform,
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// Who asks; anonymous without.
    pub credentials: Option<Arc<dyn Credentials>>,
}

impl PullOptions {
    /// The defaults: the host's platform, HTTPS, anonymous.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Sets how registries are reached.
    #[must_use]
    pub fn registry(mut self, registry: RegistryOptions) -> Self {
        self.registry = registry;
        self
    }

    /// Sets who asks.
    #[must_use]
    pub fn credentials(mut self, credentials: Arc<dyn Credentials>) -> Self {
        self.credentials = Some(credentials);
        self
    }
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions")
            .field("platform", &self.platform)
            .field("registry", &self.registry)
            .field("credentials", &self.credentials.is_some())
            .finish()
    }
}

/// When an image is asked of its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only when the store does not have it.
    #[default]
    Missing,
    /// Every time, so that a moved tag is noticed; what is stored already is not downloaded again.
    Always,
    /// Never: the store has it or the operation fails.
    Never,
}

impl std::str::FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => Err(format!(
                "`{}` is no pull policy; choose missing, always or never",
                crate::error::clip(other)
            )),
        }
    }
}

impl ImageStore {
    /// The image by `policy`: from the store, from its registry, or an error.
    ///
    /// # Errors
    /// [`ImageError::NotLocal`] with [`PullPolicy::Never`]; else those of [`pull`](Self::pull).
    pub fn ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        if policy != PullPolicy::Always {
            match self.resolve(reference, &options.platform) {
                Ok(Some(record)) => return Ok(record),
                Ok(None) => {}
                // What is damaged here can be had again there.
                Err(ImageError::Damaged { .. }) if policy == PullPolicy::Missing => {}
                Err(error) => return Err(error),
            }
        }
        match policy {
            PullPolicy::Never => Err(ImageError::NotLocal {
                image: reference.to_string(),
                platform: options.platform.clone(),
            }),
            PullPolicy::Missing | PullPolicy::Always => self.pull(reference, options, events),
        }
    }

    /// Pulls an image from its registry. Everything is verified before it is named in the store; a
    /// pull that fails leaves nothing.
    ///
    /// # Errors
    /// Any of [`ImageError`] that speaks of registries, manifests, digests or files.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        let name = reference.to_string();
        events(ImageEvent::Resolving {
            reference: name.clone(),
        });
        let client = Client::new(
            reference,
            &options.registry,
            options.credentials.as_deref(),
            events,
        )?;
        let transaction = self.begin()?;
        let remote = Remote {
            client: &client,
            reference,
            transaction: &transaction,
        };
        let chosen = choose(&remote, client.manifest()?, &name, &options.platform)?;
        let manifest = &chosen.manifest;
        let digest = chosen.digest;
        events(ImageEvent::Resolved {
            reference: name.clone(),
            digest,
            layers: manifest.layers.len(),
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        });
        let _lock = self.lock_image(&transaction, digest, events)?;
        let mut blobs = download(
            self,
            &client,
            manifest,
            &transaction,
            options,
            &name,
            events,
        )?;
        blobs.push(store::stage_bytes(&transaction, &chosen.config_bytes)?);
        blobs.push(store::stage_bytes(&transaction, &chosen.manifest_bytes)?);
        let record = self.publish(
            &transaction,
            &blobs,
            Entry {
                reference: reference.clone(),
                platform: chosen.config.platform,
                manifest: digest,
                media_type: manifest.media_type.to_owned(),
                manifest_size: chosen.manifest_bytes.len() as u64,
                index_digest: chosen.index_digest,
                pulled_at: store::now(),
            },
        )?;
        events(ImageEvent::Done {
            reference: name,
            digest,
        });
        Ok(record)
    }
}

/// The registry as a place to choose from.
struct Remote<'a> {
    client: &'a Client<'a>,
    reference: &'a Reference,
    transaction: &'a Transaction,
}

impl Documents for Remote<'_> {
    fn document(&self, digest: Digest) -> Result<Fetched> {
        self.client.manifest_by_digest(digest)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self
            .transaction
            .path(&format!("config-{}", descriptor.digest.hex()));
        self.client.blob(
            descriptor.digest,
            descriptor.size,
            &format!("the configuration of {}", self.reference),
            &path,
            &|_| {},
            &AtomicBool::new(false),
        )?;
        let bytes = store::files::read_bounded(&path, MAX_CONFIG)?.unwrap_or_default();
        store::files::remove_file(&path)?;
        Ok(bytes)
    }
}

/// Downloads the layers the store does not have, several at once; the first failure ends the others.
fn download(
    store: &ImageStore,
    client: &Client<'_>,
    manifest: &Manifest,
    transaction: &Transaction,
    options: &PullOptions,
    image: &str,
    events: &(dyn Fn(ImageEvent) + Sync),
) -> Result<Vec<StagedBlob>> {
    let mut wanted: Vec<(usize, &Layer)> = Vec::new();
    for (at, layer) in manifest.layers.iter().enumerate() {
        if store.has_blob(layer.digest, layer.size) {
            events(ImageEvent::LayerExists {
                digest: layer.digest,
                bytes: layer.size,
            });
        } else if wanted.iter().all(|(_, other)| other.digest != layer.digest) {
            wanted.push((at, layer));
        }
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let count = manifest.layers.len();
    let work = || {
        while let Some((at, layer)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let what = format!("layer {} of {count} ({}) of {image}", at + 1, layer.digest);
            let last = Mutex::new(Instant::now());
            let progress = |bytes| {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if bytes == layer.size || last.elapsed() >= PROGRESS_EVERY {
                    *last = Instant::now();
                    events(ImageEvent::LayerProgress {
                        digest: layer.digest,
                        bytes,
                        total: layer.size,
                    });
                }
            };
            let path = transaction.path(&layer.digest.hex());
            if let Err(error) =
                client.blob(layer.digest, layer.size, &what, &path, &progress, &failed)
            {
                // Only the first is kept: the others failed because of it.
                if !failed.swap(true, Ordering::Relaxed) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                return;
            }
        }
    };
    let threads = options.registry.parallel.clamp(1, 16).min(wanted.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(wanted
            .iter()
            .map(|(_, layer)| (layer.digest, transaction.path(&layer.digest.hex())))
            .collect()),
    }
}
