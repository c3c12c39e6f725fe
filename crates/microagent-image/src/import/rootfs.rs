//! A root file system's tar: read once, and in that one pass copied, hashed, unpacked and made a disk.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::container::Copy;
use super::saved::{LayerOut, manifest_json, read_back};
use super::{Import, decoder};
use crate::choose::Chosen;
use crate::config::ImageConfig;
use crate::digest::{Digest, Hasher};
use crate::disk::LayerSource;
use crate::error::{IoContext, Result};
use crate::event::ImageEvent;
use crate::manifest::Compression;
use crate::store::{self, ImageRecord, Transaction};

/// The most bytes a root file system's tar may unpack to.
const MAX_PLAIN: u64 = 256 << 30;
const CHUNK: usize = 256 << 10;
/// Chunks that may wait between the unpacking thread and the disk builder.
const QUEUE: usize = 16;

impl Import<'_> {
    pub(super) fn rootfs(
        &self,
        transaction: Transaction,
        file: &File,
        length: u64,
        compression: Compression,
    ) -> Result<ImageRecord> {
        let reference = self.name(&[])?;
        let staged_layer = transaction.path("layer");
        let staged_disk = transaction.path("disk.ext4");
        let copy = Copy::begin(file, 0, length, &staged_layer)?;
        let stop = AtomicBool::new(false);
        let (chunks, received) = sync_channel(QUEUE);
        let (unpacked, built) = std::thread::scope(|scope| {
            let unpacking =
                scope.spawn(|| self.unpack(file, length, compression, copy, chunks, &stop));
            let built = if self.options.build_disk {
                let source = LayerSource {
                    label: format!("the root file system {}", self.path.display()),
                    reader: Box::new(Chunks {
                        queue: received,
                        chunk: Vec::new(),
                        used: 0,
                    }),
                    compression: Compression::None,
                    diff_id: None,
                };
                // The digest is not known yet; events of this build bear that of nothing.
                store::build(
                    Digest::of(b""),
                    &reference.to_string(),
                    vec![source],
                    &staged_disk,
                    self.events,
                )
                .map(Some)
            } else {
                drop(received);
                Ok(None)
            };
            stop.store(built.is_err(), Ordering::Relaxed);
            let unpacked = unpacking
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (unpacked, built)
        });
        // What is wrong with the file comes first: it explains what went wrong with the disk.
        let (Some((digest, diff_id)), built) = (unpacked?, built?) else {
            return Err(self.refuse("the disk could not be built from it"));
        };
        let chosen = self.describe(digest, diff_id, length, compression)?;
        self.resolved(&reference, &chosen);
        let lock = self
            .store
            .lock_image(&transaction, chosen.digest, self.events)?;
        let record = self.publish(
            &transaction,
            &reference,
            &chosen,
            vec![(digest, staged_layer)],
        )?;
        if let Some(built) = built
            && self.store.existing_disk(chosen.digest)?.is_none()
        {
            self.store
                .publish_disk(&transaction, chosen.digest, &staged_disk, &built)?;
        }
        drop(lock);
        self.finish(transaction, record)
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
        let manifest_bytes = manifest_json(
            &config_bytes,
            &[LayerOut {
                media_type: compression.oci_media_type(),
                digest,
                size,
            }],
        );
        Ok(Chosen {
            digest: Digest::of(&manifest_bytes),
            manifest: read_back(&manifest_bytes)?,
            manifest_bytes,
            // Read again, so that what is refused later is refused now.
            config: ImageConfig::parse(&config_bytes)?,
            config_bytes,
            index_digest: None,
        })
    }

    /// Copies and hashes the file, unpacks and hashes the tar stream, and hands it to the disk builder
    /// for as long as that wants it. Returns the layer's digest and diff id; `None` when told to stop.
    fn unpack(
        &self,
        file: &File,
        length: u64,
        compression: Compression,
        copy: Copy<'_>,
        chunks: SyncSender<Vec<u8>>,
        stop: &AtomicBool,
    ) -> Result<Option<(Digest, Digest)>> {
        let done = AtomicU64::new(0);
        let mut tap = Tap {
            file,
            copy,
            read: &done,
        };
        let mut plain = Hasher::default();
        let mut total = 0u64;
        let mut chunks = Some(chunks);
        {
            let mut stream = decoder(compression, &mut tap).context("read", self.path)?;
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let mut chunk = vec![0u8; CHUNK];
                let count = fill(&mut stream, &mut chunk).map_err(|error| {
                    self.refuse(format!(
                        "its {} cannot be unpacked: {error}",
                        name_of(compression)
                    ))
                })?;
                if count == 0 {
                    break;
                }
                chunk.truncate(count);
                total += count as u64;
                if total > MAX_PLAIN {
                    return Err(self.refuse(format!("it unpacks to more than {MAX_PLAIN} bytes")));
                }
                if compression != Compression::None {
                    plain.update(&chunk);
                }
                // The builder stops listening at the archive's end mark; padding may follow.
                if chunks
                    .as_ref()
                    .is_some_and(|chunks| chunks.send(chunk).is_err())
                {
                    chunks = None;
                }
                let bytes = done.load(Ordering::Relaxed);
                if self.may_tell(false) {
                    (self.events)(ImageEvent::Importing {
                        bytes,
                        total: length,
                    });
                }
            }
        }
        drop(chunks);
        // What follows the compressed stream belongs to the blob all the same.
        io::copy(&mut tap, &mut io::sink()).context("read", self.path)?;
        if done.load(Ordering::Relaxed) != length {
            return Err(self.refuse("it changed while it was read"));
        }
        (self.events)(ImageEvent::Importing {
            bytes: length,
            total: length,
        });
        let digest = tap.copy.finish()?;
        let diff_id = match compression {
            Compression::None => digest,
            Compression::Gzip | Compression::Zstd => plain.finish(),
        };
        Ok(Some((digest, diff_id)))
    }
}

/// Copies what is read from it.
struct Tap<'a> {
    file: &'a File,
    copy: Copy<'a>,
    read: &'a AtomicU64,
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.copy.add(&buffer[..count]).map_err(io::Error::other)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The disk builder's end of the queue.
struct Chunks {
    queue: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    used: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.chunk.len() {
            match self.queue.recv() {
                Ok(chunk) => (self.chunk, self.used) = (chunk, 0),
                // The unpacking thread is done, or says itself why it is not.
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.used);
        buffer[..count].copy_from_slice(&self.chunk[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}

/// Reads until `buffer` is full or the stream ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn name_of(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "content",
        Compression::Gzip => "gzip stream",
        Compression::Zstd => "zstd stream",
    }
}
