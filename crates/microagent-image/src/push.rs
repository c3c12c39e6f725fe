//! From the store to a registry: what is not there is sent, and the manifest last, so that nobody ever sees a part.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::event::ImageEvent;
use crate::manifest::MAX_MANIFEST;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Client, Credentials, Outcome, RegistryOptions, RegistryScope, Upload};
use crate::store::ImageStore;

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How an image is pushed.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct PushOptions {
    /// Which of the platforms an image was pulled for; the host's, else the only one, without.
    pub platform: Option<Platform>,
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// Who asks; anonymous without.
    pub credentials: Option<Arc<dyn Credentials>>,
}

impl PushOptions {
    /// The defaults: the host's platform, HTTPS, anonymous.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
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

impl std::fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushOptions")
            .field("platform", &self.platform)
            .field("registry", &self.registry)
            .field("credentials", &self.credentials.is_some())
            .finish()
    }
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pushed {
    /// The image's name in the store.
    pub image: Reference,
    /// Where it is now.
    pub reference: Reference,
    /// The digest of its manifest, which the registry confirmed.
    pub digest: Digest,
    /// How many layers were sent.
    pub layers_sent: usize,
    /// How many the registry took over from another repository of its own.
    pub layers_mounted: usize,
    /// How many were there.
    pub layers_existed: usize,
    /// How many bytes of layers were sent.
    pub bytes_sent: u64,
}

/// A layer or the configuration.
struct Blob {
    digest: Digest,
    size: u64,
    what: String,
    path: PathBuf,
    is_layer: bool,
}

impl ImageStore {
    /// Sends an image to a registry: to where its own name says, or to `to`. Manifest, configuration and layers go
    /// as they are stored, so the digest is the same there. Layers that may not be handed on are not sent. Mirrors are
    /// not asked.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] and [`ImageError::Ambiguous`] for a name, [`ImageError::CannotPush`] for a digest that
    /// is not the image's, [`ImageError::TakesNoImages`], and any that speaks of registries.
    pub fn push(
        &self,
        name: &str,
        to: Option<&Reference>,
        options: &PushOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<Pushed> {
        // While it lives, nothing of the store is reclaimed.
        let _transaction = self.begin()?;
        let record = self.select(name, options.platform.as_ref())?;
        let target = to.unwrap_or(&record.reference);
        if let Some(digest) = target.digest()
            && digest != record.digest
        {
            return Err(ImageError::CannotPush {
                image: record.reference.to_string(),
                reason: format!(
                    "its digest is {}, and {target} is another image; name a tag",
                    record.digest
                ),
            });
        }
        let manifest = self.manifest(record.digest)?;
        let bytes = self.blob_bytes(record.digest, MAX_MANIFEST)?;
        let place = RegistryScope::of(target);
        let from = self.source_of(&record.layers, &place)?;
        let client = Client::new(
            target,
            &place,
            &options.registry,
            options.credentials.as_deref(),
            events,
        )?
        .pushing(from.clone());
        events(ImageEvent::Pushing {
            reference: target.to_string(),
            digest: record.digest,
            layers: manifest.layers.len(),
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        });
        let count = manifest.layers.len();
        let mut seen = BTreeSet::new();
        let mut blobs: Vec<Blob> = manifest
            .layers
            .iter()
            .enumerate()
            // What may not be handed on is had from where its maker says.
            .filter(|(_, layer)| layer.urls.is_empty() && seen.insert(layer.digest))
            .map(|(at, layer)| Blob {
                digest: layer.digest,
                size: layer.size,
                what: format!(
                    "layer {} of {count} ({}) of {}",
                    at + 1,
                    layer.digest,
                    record.reference
                ),
                path: self.blob_path(layer.digest),
                is_layer: true,
            })
            .collect();
        blobs.push(Blob {
            digest: manifest.config.digest,
            size: manifest.config.size,
            what: format!("the configuration of {}", record.reference),
            path: self.blob_path(manifest.config.digest),
            is_layer: false,
        });
        if let Some(blob) = blobs
            .iter()
            .find(|blob| !self.has_blob(blob.digest, blob.size))
        {
            return Err(ImageError::Damaged {
                path: blob.path.clone(),
                reason: "is missing, or not as large as it should be".into(),
                remedy: "Remove the image and pull or import it again.",
            });
        }
        let sending = Sending {
            client: &client,
            blobs: &blobs,
            from: from.as_deref(),
            events,
        };
        let outcomes = sending.run(options.registry.parallel)?;
        client.send_manifest(manifest.media_type, &bytes)?;
        let of = |wanted: Outcome| {
            let layers = blobs.iter().zip(&outcomes);
            layers.filter(move |(blob, outcome)| blob.is_layer && **outcome == wanted)
        };
        let pushed = Pushed {
            image: record.reference.clone(),
            reference: target.clone(),
            digest: record.digest,
            layers_sent: of(Outcome::Sent).count(),
            layers_mounted: of(Outcome::Mounted).count(),
            layers_existed: of(Outcome::Existed).count(),
            bytes_sent: of(Outcome::Sent).map(|(blob, _)| blob.size).sum(),
        };
        events(ImageEvent::Pushed {
            reference: target.to_string(),
            digest: record.digest,
        });
        Ok(pushed)
    }

    /// Another repository of the same registry that has some of `layers`: what was pulled from there. The one with
    /// the most of them.
    fn source_of(
        &self,
        layers: &[crate::manifest::Layer],
        place: &RegistryScope,
    ) -> Result<Option<String>> {
        let wanted: BTreeSet<Digest> = layers.iter().map(|layer| layer.digest).collect();
        let shared = |record: &crate::store::ImageRecord| {
            let have = record.layers.iter();
            have.filter(|layer| wanted.contains(&layer.digest)).count()
        };
        let best = self
            .list()?
            .into_iter()
            .filter(|record| record.pulled_from.as_deref() == Some(place.registry()))
            .filter(|record| RegistryScope::of(&record.reference) != *place)
            .filter(|record| RegistryScope::of(&record.reference).registry() == place.registry())
            .map(|record| (shared(&record), record))
            .filter(|(count, _)| *count > 0)
            .max_by_key(|(count, _)| *count);
        Ok(best.map(|(_, record)| record.reference.repository().to_owned()))
    }
}

/// What is on its way.
struct Sending<'a> {
    client: &'a Client<'a>,
    blobs: &'a [Blob],
    from: Option<&'a str>,
    events: &'a (dyn Fn(ImageEvent) + Sync),
}

impl Sending<'_> {
    /// Sends everything, several at once; the first failure ends the others. Tells how each came there.
    fn run(&self, parallel: usize) -> Result<Vec<Outcome>> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let outcomes = Mutex::new(vec![Outcome::Existed; self.blobs.len()]);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(blob) = self.blobs.get(at) else {
                    return;
                };
                if failed.load(Ordering::Relaxed) {
                    return;
                }
                match self.one(blob, &failed) {
                    Ok(outcome) => lock(&outcomes)[at] = outcome,
                    Err(error) => {
                        // Only the first is kept: the others failed because of it.
                        if !failed.swap(true, Ordering::Relaxed) {
                            *lock(&failure) = Some(error);
                        }
                        return;
                    }
                }
            }
        };
        let threads = parallel.clamp(1, 16).min(self.blobs.len());
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(outcomes
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn one(&self, blob: &Blob, cancelled: &AtomicBool) -> Result<Outcome> {
        let (digest, total) = (blob.digest, blob.size);
        let last = Mutex::new(Instant::now());
        let progress = |bytes| {
            let mut last = lock(&last);
            if blob.is_layer && (bytes == total || last.elapsed() >= PROGRESS_EVERY) {
                *last = Instant::now();
                (self.events)(ImageEvent::LayerProgress {
                    digest,
                    bytes,
                    total,
                });
            }
        };
        let upload = Upload {
            digest,
            size: total,
            path: &blob.path,
            what: &blob.what,
            progress: &progress,
            cancelled,
        };
        let from = self.from.filter(|_| blob.is_layer);
        let outcome = self.client.send_blob(&upload, from)?;
        match outcome {
            Outcome::Existed if blob.is_layer => (self.events)(ImageEvent::LayerExists {
                digest,
                bytes: total,
            }),
            Outcome::Mounted => (self.events)(ImageEvent::LayerMounted {
                digest,
                bytes: total,
                from: from.unwrap_or_default().to_owned(),
            }),
            _ => {}
        }
        Ok(outcome)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is set under these locks is set in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
