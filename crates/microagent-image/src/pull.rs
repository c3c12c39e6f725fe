//! From a reference to verified content in the store: resolve, choose the platform, download, publish.

mod arriving;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::arriving::Arrivals;
use crate::choose::{Documents, Fetched, choose};
use crate::config::MAX_CONFIG;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::event::ImageEvent;
use crate::manifest::{Descriptor, Layer, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Blob, Client, Credentials, DOWNLOAD_BUFFER, RegistryOptions, RegistryScope};
use crate::signature::{self, VerifyKey};
use crate::store::{self, Entry, ImageRecord, ImageStore, StagedBlob, Transaction};

/// Layers that are downloaded at once, however many somebody asks for.
const MOST_AT_ONCE: usize = 16;
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
    /// Whether the base disk is built while the layers come. If that fails, the image is there all the
    /// same, and [`ImageStore::base_disk`] tells why.
    pub build_disk: bool,
    /// The key that the image must be signed with; signatures are not looked at without.
    pub verify_key: Option<VerifyKey>,
}

impl PullOptions {
    /// The defaults: the host's platform, HTTPS, anonymous, and no disk yet.
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

    /// Sets the key that the image must be signed with.
    #[must_use]
    pub fn verify_key(mut self, key: VerifyKey) -> Self {
        self.verify_key = Some(key);
        self
    }

    /// Sets who asks.
    #[must_use]
    pub fn credentials(mut self, credentials: Arc<dyn Credentials>) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Sets whether the base disk is built while the layers come.
    #[must_use]
    pub fn build_disk(mut self, build: bool) -> Self {
        self.build_disk = build;
        self
    }
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions")
            .field("platform", &self.platform)
            .field("registry", &self.registry)
            .field("credentials", &self.credentials.is_some())
            .field("build_disk", &self.build_disk)
            .field("verify_key", &self.verify_key)
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
    /// [`ImageError::NotLocal`] and [`ImageError::NotVerified`] with [`PullPolicy::Never`]; else those of [`pull`](Self::pull).
    pub fn ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        // A digest cannot move: what is here is what is there.
        if policy != PullPolicy::Always || reference.digest().is_some() {
            match self.resolve(reference, &options.platform) {
                Ok(Some(record)) => {
                    let record = match (&options.verify_key, policy) {
                        (None, _) => record,
                        (Some(key), _) if signature::is_checked(&record, key) => record,
                        (Some(key), PullPolicy::Never) => {
                            return Err(ImageError::NotVerified {
                                image: reference.to_string(),
                                key: key.fingerprint().short(),
                            });
                        }
                        (Some(key), _) => self.check_stored(record, key, options, events)?,
                    };
                    return match policy {
                        PullPolicy::Always => self.name(&record, reference),
                        PullPolicy::Missing | PullPolicy::Never => Ok(record),
                    };
                }
                Ok(None) => {}
                // What is damaged here can be had again there.
                Err(ImageError::Damaged { .. }) if policy != PullPolicy::Never => {}
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

    /// Pulls an image from its registry, or from a mirror of it. Everything is verified before it is
    /// named in the store; a pull that fails leaves only layers to go on with, which count for nothing
    /// and are removed after a week or with the next removal of an image.
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
        let origin = RegistryScope::of(reference);
        let mirrors = options.registry.mirrors_of(&origin);
        if !mirrors.is_empty() {
            options.registry.refuse_blocked(origin.registry(), &name)?;
        }
        for mirror in mirrors {
            let options = options.clone().registry(options.registry.for_mirror());
            match self.pull_from(reference, &mirror, &options, events) {
                Ok(record) => {
                    events(ImageEvent::FromMirror {
                        reference: name,
                        mirror: mirror.registry().to_owned(),
                    });
                    return Ok(record);
                }
                // What is wrong here is wrong there, too.
                Err(
                    error @ (ImageError::Io { .. }
                    | ImageError::NoSpace { .. }
                    | ImageError::Damaged { .. }),
                ) => return Err(error),
                Err(error) => events(ImageEvent::MirrorFailed {
                    mirror: mirror.registry().to_owned(),
                    reason: error.to_string(),
                }),
            }
        }
        self.pull_from(reference, &origin, options, events)
    }

    fn pull_from(
        &self,
        reference: &Reference,
        place: &RegistryScope,
        options: &PullOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        let name = reference.to_string();
        let _span = tracing::info_span!("pull", image = name).entered();
        let client = Client::new(
            reference,
            place,
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
        let checked = match &options.verify_key {
            Some(key) => {
                let digests = signature::signed_digests(chosen.index_digest, digest);
                let checked = signature::check(&client, key, &name, &digests)?;
                events(ImageEvent::SignatureVerified {
                    reference: name.clone(),
                    digest: checked.signed,
                    key: checked.key,
                });
                Some(checked)
            }
            None => None,
        };
        let _lock = self.lock_image(&transaction, digest, events)?;
        let arrivals = Arrivals::of(&manifest.layers);
        let download = Layers {
            arrivals: &arrivals,
            store: self,
            client: &client,
            manifest,
            transaction: &transaction,
            image: &name,
            events,
        };
        let mut entry = Entry::new(reference, &chosen, Some(place.registry().to_owned()));
        entry.signature = checked;
        let before = self.resolve(reference, &entry.platform);
        // The image counts as soon as its layers are here; its disk may still be on the way then.
        let fetch = || {
            let blobs = download.run(options.registry.parallel);
            let fetched = blobs.and_then(|mut blobs| {
                blobs.push(store::stage_bytes(&transaction, &chosen.config_bytes)?);
                blobs.push(store::stage_bytes(&transaction, &chosen.manifest_bytes)?);
                self.publish(&transaction, &blobs, entry)
            });
            if fetched.is_err() {
                arrivals.fail();
            }
            fetched
        };
        let (fetched, built) = if options.build_disk && self.existing_disk(digest)?.is_none() {
            std::thread::scope(|scope| {
                let (sources, passed) = arrivals.sources(&chosen);
                scope.spawn(|| arriving::let_go(passed));
                let fetching = scope.spawn(fetch);
                let built = self.build_disk(&transaction, &name, digest, sources, events);
                let fetched = fetching.join().unwrap_or_else(|panic| resume_unwind(panic));
                (fetched, Some(built))
            })
        } else {
            (fetch(), None)
        };
        let mut record = fetched?;
        match built {
            Some(Ok(built)) => {
                self.publish_disk(&transaction, digest, &built)?;
                record.disk = Some(self.disk_path(digest));
                events(ImageEvent::DiskReady {
                    digest,
                    bytes: built.size_bytes(),
                    existed: false,
                });
            }
            Some(Err(error)) => tracing::debug!(%error, "the disk is not built yet"),
            None => {}
        }
        if let Ok(Some(before)) = before
            && before.digest != digest
            && before.platform == record.platform
        {
            events(ImageEvent::TagMoved {
                reference: name.clone(),
                from: before.digest,
                to: digest,
            });
        }
        events(ImageEvent::Done {
            reference: name,
            digest,
        });
        Ok(record)
    }
}

/// The registry as a place to choose from.
pub(crate) struct Remote<'a> {
    pub(crate) client: &'a Client<'a>,
    pub(crate) reference: &'a Reference,
    pub(crate) transaction: &'a Transaction,
}

impl Documents for Remote<'_> {
    fn document(&self, digest: Digest) -> Result<Fetched> {
        self.client.manifest_by_digest(digest)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self
            .transaction
            .path(&format!("config-{}", descriptor.digest.hex()));
        let file = store::files::create_new(&path)?;
        let blob = Blob {
            digest: descriptor.digest,
            size: descriptor.size,
            what: &format!("the configuration of {}", self.reference),
            urls: &[],
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        self.client.blob(&blob, &file, &path)?;
        let bytes = store::files::read_bounded(&path, MAX_CONFIG)?.unwrap_or_default();
        store::files::remove_file(&path)?;
        Ok(bytes)
    }
}

/// The layers of one image on their way into the store.
struct Layers<'a> {
    arrivals: &'a Arrivals,
    store: &'a ImageStore,
    client: &'a Client<'a>,
    manifest: &'a Manifest,
    transaction: &'a Transaction,
    image: &'a str,
    events: &'a (dyn Fn(ImageEvent) + Sync),
}

impl Layers<'_> {
    /// Downloads the layers the store does not have, several at once; the first failure ends the
    /// others. What came stays where a later pull finds it.
    fn run(&self, parallel: usize) -> Result<Vec<StagedBlob>> {
        let mut wanted: Vec<(usize, &Layer)> = Vec::new();
        for (at, layer) in self.manifest.layers.iter().enumerate() {
            if self.store.has_blob(layer.digest, layer.size) {
                self.exists(layer);
            } else if wanted.iter().all(|(_, other)| other.digest != layer.digest) {
                wanted.push((at, layer));
            }
        }
        self.check_space(&wanted)?;
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let staged = Mutex::new(Vec::new());
        let work = || {
            while let Some((at, layer)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.load(Ordering::Relaxed) {
                    return;
                }
                match self.one(*at, layer, &failed) {
                    Ok(None) => {}
                    Ok(Some(blob)) => lock(&staged).push(blob),
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
        let threads = parallel.clamp(1, MOST_AT_ONCE).min(wanted.len());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    give_way();
                    work();
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(staged.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn exists(&self, layer: &Layer) {
        self.arrivals
            .stored(layer, &self.store.blob_path(layer.digest));
        (self.events)(ImageEvent::LayerExists {
            digest: layer.digest,
            bytes: layer.size,
        });
    }

    /// Says at once what would otherwise be known when the disk is full.
    fn check_space(&self, wanted: &[(usize, &Layer)]) -> Result<()> {
        let missing = wanted
            .iter()
            .map(|(_, layer)| layer.size - self.store.partial_bytes(layer.digest).min(layer.size))
            .fold(0u64, u64::saturating_add);
        let directory = self.store.root();
        match store::files::free_space(directory) {
            Some(available) if available < missing => Err(ImageError::NoSpace {
                what: format!("the layers of {}", self.image),
                path: directory.to_owned(),
                needed: Some(missing),
                available,
            }),
            _ => Ok(()),
        }
    }

    /// Downloads one layer; `None` if another pull brought it meanwhile.
    fn one(&self, at: usize, layer: &Layer, failed: &AtomicBool) -> Result<Option<StagedBlob>> {
        let _span =
            tracing::info_span!("download", layer = %layer.digest, bytes = layer.size).entered();
        let partial = self.store.partial(self.transaction, layer.digest, &|| {
            (self.events)(ImageEvent::Waiting {
                digest: layer.digest,
            });
        })?;
        if self.store.has_blob(layer.digest, layer.size) {
            partial.discard()?;
            self.exists(layer);
            return Ok(None);
        }
        self.arrivals.begun(layer, &partial.path);
        let there = self.store.partial_bytes(layer.digest);
        if there == layer.size {
            (self.events)(ImageEvent::LayerExists {
                digest: layer.digest,
                bytes: layer.size,
            });
        } else if there > 0 && there < layer.size {
            (self.events)(ImageEvent::LayerResumed {
                digest: layer.digest,
                bytes: there,
                total: layer.size,
            });
        }
        let last = Mutex::new(Instant::now());
        let progress = |bytes| {
            self.arrivals.came(layer, bytes);
            let mut last = lock(&last);
            if bytes == layer.size || last.elapsed() >= PROGRESS_EVERY {
                *last = Instant::now();
                (self.events)(ImageEvent::LayerProgress {
                    digest: layer.digest,
                    bytes,
                    total: layer.size,
                });
            }
        };
        let count = self.manifest.layers.len();
        let blob = Blob {
            digest: layer.digest,
            size: layer.size,
            what: &format!(
                "layer {} of {count} ({}) of {}",
                at + 1,
                layer.digest,
                self.image
            ),
            urls: &layer.urls,
            progress: &progress,
            cancelled: failed,
        };
        match self.client.blob(&blob, partial.file(), &partial.path) {
            Ok(()) => {
                self.arrivals.complete(layer);
                Ok(Some((layer.digest, partial.path)))
            }
            Err(error) => {
                // Lies are not gone on with, and a full disk is to have room again.
                if matches!(
                    error,
                    ImageError::DigestMismatch { .. }
                        | ImageError::SizeMismatch { .. }
                        | ImageError::NoSpace { .. }
                ) {
                    partial.discard()?;
                }
                Err(error)
            }
        }
    }
}

/// What downloading so many layers takes at most.
pub(crate) fn memory(layers: usize) -> u64 {
    (layers.min(MOST_AT_ONCE) * DOWNLOAD_BUFFER) as u64
}

/// Lets the other threads of this operation go first: what is made of the layers takes longer than fetching them.
/// Only ever on a thread of our own, as there is no way back.
#[cfg(target_os = "linux")]
pub(crate) fn give_way() {
    // On Linux this is about the calling thread only; without it everything is merely slower.
    if let Err(error) = rustix::process::nice(5) {
        tracing::debug!(%error, "cannot lower a thread's priority");
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn give_way() {}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is set under these locks is set in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
