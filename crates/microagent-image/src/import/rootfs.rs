//! A root file system's tar: read once, and in that one pass copied, hashed, unpacked and made a disk.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::container::Copy;
use super::saved::{LayerOut, manifest_json, read_back};
use super::{Import, decoder};
use crate::choose::Chosen;
use crate::config::ImageConfig;
use crate::digest::{Digest, Hasher};
use crate::disk::{self, LayerSource};
use crate::error::{ImageError, IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::Compression;
use crate::store::{ImageRecord, Transaction};

/// The most bytes a root file system's tar may unpack to where no disk is built that would bound it.
const MAX_PLAIN: u64 = 256 << 30;

impl Import<'_> {
    pub(super) fn rootfs(
        &self,
        transaction: Transaction,
        file: File,
        length: u64,
        compression: Compression,
    ) -> Result<ImageRecord> {
        let reference = self.name(&[])?;
        let staged_layer = transaction.path("layer");
        let copy = Copy::begin(&file, 0, length, staged_layer.clone())?;
        let tap = Tap(Arc::new(Mutex::new(Tapped {
            file: copy.shared()?.unwrap_or(file),
            copy: Some(copy),
            read: 0,
            failed: None,
        })));
        let (diff_id, piece) = if self.options.build_disk {
            let label = format!("the root file system {}", self.path.display());
            let source = LayerSource {
                label: label.clone(),
                reader: Box::new(tap.clone()),
                compression: compression.into(),
                diff_id: None,
            };
            let image = reference.to_string();
            let came = |_| {
                (self.events)(ImageEvent::Importing {
                    bytes: tap.lock().read,
                    total: length,
                });
            };
            let piece = self
                .store
                .new_piece(&transaction, &image, source, &came, self.events);
            // What is wrong with the copy comes first: it explains what went wrong with the disk.
            if let Some(error) = tap.lock().failed.take() {
                return Err(error);
            }
            let piece = piece?;
            (piece.diff_id, Some((label, piece)))
        } else {
            (self.hash_plain(tap.clone(), compression)?, None)
        };
        let digest = self.complete(tap, length)?;
        let chosen = self.describe(digest, diff_id, length, compression)?;
        self.resolved(&reference, &chosen);
        let lock = self
            .store
            .lock_image(&transaction, chosen.digest, self.events)?;
        // What is refused is refused before anything has a name.
        let built = match piece {
            Some(piece) if self.store.existing_disk(chosen.digest)?.is_none() => {
                let name = reference.to_string();
                let pieces = [piece];
                let (store, events) = (&self.store, self.events);
                Some(store.join_pieces(&transaction, &name, chosen.digest, &pieces, events)?)
            }
            _ => None,
        };
        let blobs = vec![(digest, staged_layer)];
        let record = self.publish(&transaction, &reference, &chosen, blobs)?;
        if let Some(built) = &built {
            self.store
                .publish_disk(&transaction, chosen.digest, built)?;
        }
        let published = built.is_some();
        drop(lock);
        self.finish(transaction, record, published)
    }

    /// The image's documents. They hold no time, so that the same file is the same image.
    fn describe(
        &self,
        digest: Digest,
        diff_id: Digest,
        size: u64,
        compression: Compression,
    ) -> Result<Chosen> {
        let options = self.options;
        let mut cmd = options.cmd.clone();
        if cmd.is_empty() && options.entrypoint.is_empty() {
            cmd.push("/bin/sh".into());
        }
        let config = ImageConfig {
            platform: options.platform.clone(),
            env: options.env.clone(),
            entrypoint: options.entrypoint.clone(),
            cmd,
            diff_ids: vec![diff_id],
            ..ImageConfig::default()
        };
        let config_bytes = config.to_json();
        let layer = LayerOut {
            media_type: compression.oci_media_type(),
            digest,
            size,
        };
        let manifest_bytes = manifest_json(&config_bytes, &[layer]);
        Ok(Chosen {
            digest: Digest::of(&manifest_bytes),
            manifest: read_back(&manifest_bytes)?,
            manifest_bytes,
            // Read again, so that what would be refused later is refused now.
            config: ImageConfig::parse(&config_bytes)?,
            config_bytes,
            index_digest: None,
        })
    }

    /// Unpacks only to hash, where no disk is wanted.
    fn hash_plain(&self, tap: Tap, compression: Compression) -> Result<Digest> {
        let mut stream = decoder(compression, tap).context("read", self.path)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0u8; 256 << 10];
        let mut total = 0u64;
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.refuse(format!("it cannot be unpacked: {error}"))),
            };
            total += count as u64;
            if total > MAX_PLAIN {
                return Err(self.refuse(format!("it unpacks to more than {MAX_PLAIN} bytes")));
            }
            hasher.update(&buffer[..count]);
        }
    }

    /// Copies what the unpacking left over, which belongs to the blob all the same.
    fn complete(&self, mut tap: Tap, length: u64) -> Result<Digest> {
        io::copy(&mut tap, &mut io::sink()).context("read", self.path)?;
        let mut tapped = tap.lock();
        if let Some(error) = tapped.failed.take() {
            return Err(error);
        }
        if tapped.read != length {
            return Err(self.refuse("it changed while it was read"));
        }
        match tapped.copy.take() {
            Some(copy) => copy.finish(),
            None => Err(self.refuse("it was read twice")),
        }
    }
}

impl From<Compression> for disk::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// A reader of the file that copies and hashes what passes. The disk builder takes one for good, so what
/// it leaves behind is shared.
#[derive(Clone)]
struct Tap(Arc<Mutex<Tapped>>);

struct Tapped {
    file: File,
    copy: Option<Copy>,
    read: u64,
    /// Why copying failed; the reader's own error says only that it did.
    failed: Option<ImageError>,
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, Tapped> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tapped = self.lock();
        let count = tapped.file.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            tapped.copy.as_mut().map_or(Ok(()), Copy::complete)?;
            return Ok(0);
        }
        if let Some(copy) = &mut tapped.copy
            && let Err(error) = copy.add(&buffer[..count])
        {
            tapped.failed = Some(error);
            return Err(io::Error::other("the layer could not be copied"));
        }
        tapped.read += count as u64;
        Ok(count)
    }
}
