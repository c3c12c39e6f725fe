//! An image's layers on their way into the store, and the disk that is made of them meanwhile.
//!
//! Two passes over the same bytes, side by side: one unpacks the layers into the disk, the other copies and
//! hashes them. Each checks what it read by digests of its own, so a file that changes under both is found out.
//! Nothing is published before both are done.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::Import;
use super::container::Part;
use crate::choose::Chosen;
use crate::disk::LayerSource;
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::Layer;
use crate::pull::give_way;
use crate::reference::Reference;
use crate::store::{self, ImageRecord, StagedBlob, StagedDisk, Transaction};

/// Where a layer's bytes are.
enum Origin {
    /// In the store already.
    Stored(PathBuf),
    /// In what is imported.
    Part(Part),
}

struct Incoming<'a> {
    layer: &'a Layer,
    /// Names it in errors.
    what: String,
    origin: Origin,
    /// Where its copy goes; `None` where none is needed, because it is stored or was in the image before.
    staged: Option<PathBuf>,
}

impl Import<'_> {
    /// Copies the layers the store does not have, builds the disk where that is wanted, and publishes both.
    /// `find` is asked for the part that holds a layer, by its place from 0.
    pub(super) fn store_image(
        &self,
        transaction: Transaction,
        reference: &Reference,
        chosen: &Chosen,
        find: &dyn Fn(usize, &Layer) -> Result<Part>,
    ) -> Result<ImageRecord> {
        self.resolved(reference, chosen);
        let lock = self
            .store
            .lock_image(&transaction, chosen.digest, self.events)?;
        let layers = self.incoming(&transaction, chosen, find)?;
        let wanted = self.options.build_disk && self.store.existing_disk(chosen.digest)?.is_none();
        let built = if wanted {
            Some(self.copy_and_build(&transaction, &layers, reference, chosen)?)
        } else {
            layers.iter().try_for_each(|layer| self.copy(layer))?;
            None
        };
        let blobs: Vec<StagedBlob> = layers
            .into_iter()
            .filter_map(|layer| Some((layer.layer.digest, layer.staged?)))
            .collect();
        let record = self.publish(&transaction, reference, chosen, blobs)?;
        if let Some(built) = &built {
            self.store
                .publish_disk(&transaction, chosen.digest, built)?;
        }
        drop(lock);
        self.finish(transaction, record, built.is_some())
    }

    fn incoming<'a>(
        &self,
        transaction: &Transaction,
        chosen: &'a Chosen,
        find: &dyn Fn(usize, &Layer) -> Result<Part>,
    ) -> Result<Vec<Incoming<'a>>> {
        let layers = &chosen.manifest.layers;
        let mut all: Vec<Incoming<'a>> = Vec::with_capacity(layers.len());
        for (at, layer) in layers.iter().enumerate() {
            let what = format!(
                "layer {} of {} ({}) in {}",
                at + 1,
                layers.len(),
                layer.digest,
                self.path.display()
            );
            let (origin, staged) = if self.store.has_blob(layer.digest, layer.size) {
                (self.events)(ImageEvent::LayerExists {
                    digest: layer.digest,
                    bytes: layer.size,
                });
                (Origin::Stored(self.store.blob_path(layer.digest)), None)
            } else {
                let part = find(at, layer)?;
                if part.size() != layer.size {
                    return Err(ImageError::SizeMismatch {
                        what,
                        expected: layer.size,
                        actual: part.size(),
                    });
                }
                let first = all.iter().all(|other| other.layer.digest != layer.digest);
                let staged = first.then(|| transaction.path(&layer.digest.hex()));
                (Origin::Part(part), staged)
            };
            all.push(Incoming {
                layer,
                what,
                origin,
                staged,
            });
        }
        Ok(all)
    }

    fn copy_and_build(
        &self,
        transaction: &Transaction,
        layers: &[Incoming<'_>],
        reference: &Reference,
        chosen: &Chosen,
    ) -> Result<StagedDisk> {
        let failed = Arc::new(AtomicBool::new(false));
        let sources = layers
            .iter()
            .zip(&chosen.config.diff_ids)
            .enumerate()
            .map(|(at, (layer, diff_id))| {
                let reader = Box::new(Stoppable {
                    bytes: layer.origin.open()?,
                    stop: Arc::clone(&failed),
                });
                let count = layers.len();
                Ok(store::layer_source(
                    at,
                    count,
                    layer.layer,
                    *diff_id,
                    reader,
                ))
            })
            .collect::<Result<Vec<LayerSource>>>()?;
        let (copied, built) = thread::scope(|scope| {
            let copying = || {
                give_way();
                layers
                    .iter()
                    .try_for_each(|layer| self.copy(layer))
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))
            };
            let copier = thread::Builder::new()
                .name("layer-copy".to_owned())
                .spawn_scoped(scope, copying)
                .context("start a thread to copy", self.path)?;
            let built = self.store.build_disk(
                transaction,
                &reference.to_string(),
                chosen.digest,
                sources,
                self.events,
            );
            let copied = copier.join().unwrap_or_else(|_| {
                Err(io::Error::other("the copying thread panicked")).context("copy", self.path)
            });
            Ok::<_, ImageError>((copied, built))
        })?;
        // What is wrong with a layer comes first: it explains what went wrong with the disk.
        copied?;
        built
    }

    /// Copies one layer, and holds what it read against the layer's digest.
    fn copy(&self, incoming: &Incoming<'_>) -> Result<()> {
        let (Origin::Part(part), Some(staged)) = (&incoming.origin, &incoming.staged) else {
            return Ok(());
        };
        let (digest, total) = (incoming.layer.digest, incoming.layer.size);
        let actual = part.copy(staged, &mut |bytes| {
            if self.may_tell(bytes == total) {
                (self.events)(ImageEvent::LayerProgress {
                    digest,
                    bytes,
                    total,
                });
            }
        })?;
        if actual == digest {
            Ok(())
        } else {
            Err(ImageError::DigestMismatch {
                what: incoming.what.clone(),
                expected: digest,
                actual,
            })
        }
    }
}

impl Origin {
    fn open(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Stored(path) => Box::new(File::open(path).context("open the layer", path)?),
            Self::Part(part) => Box::new(part.reader()?),
        })
    }
}

/// A layer's bytes, until the import has failed elsewhere.
struct Stoppable {
    bytes: Box<dyn Read + Send>,
    stop: Arc<AtomicBool>,
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(
                "another layer is not what it claims to be",
            ));
        }
        self.bytes.read(buffer)
    }
}
