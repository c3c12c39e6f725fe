//! Images from files: a root file system's tar, an OCI layout or archive, a `docker save` archive.
//!
//! What a file is, is told by looking at it, never by its name. A layer is stored as it was given, never
//! recompressed, and hashed while it is copied; the disk is built at the same time.

mod container;
mod layers;
mod layout;
mod load;
mod rootfs;
mod saved;
mod tarball;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::choose::Chosen;
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result, clip};
use crate::event::ImageEvent;
use crate::manifest::Compression;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Entry, ImageRecord, ImageStore, StagedBlob, Transaction};
use container::Container;
pub(crate) use saved::{LayerOut, manifest_json};
use tarball::{Kind, Skip, Streamed};

/// The most bytes a compressed image archive may unpack to.
const MAX_ARCHIVE: u64 = 256 << 30;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How a file becomes an image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportOptions {
    /// The name to store it under. Needed for a root file system; an archive may say its own.
    pub reference: Option<Reference>,
    /// Which of the images in an archive of several: its name as the archive writes it.
    pub select: Option<String>,
    /// The platform to choose from an archive, or what a root file system is for.
    pub platform: Platform,
    /// The entrypoint of an image made from a root file system.
    pub entrypoint: Vec<String>,
    /// The command of an image made from a root file system; without one and without an entrypoint
    /// it is `/bin/sh`.
    pub cmd: Vec<String>,
    /// The environment (`KEY=value`) of an image made from a root file system.
    pub env: Vec<String>,
    /// Whether the base disk is built at once, which costs least while the layer is read anyway.
    pub build_disk: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            reference: None,
            select: None,
            platform: Platform::default(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            build_disk: true,
        }
    }
}

impl ImportOptions {
    /// The defaults: the archive's own name, the host's platform, and the base disk at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name to store the image under.
    #[must_use]
    pub fn reference(mut self, reference: Reference) -> Self {
        self.reference = Some(reference);
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Sets whether the base disk is built at once.
    #[must_use]
    pub fn build_disk(mut self, build: bool) -> Self {
        self.build_disk = build;
        self
    }
}

impl ImageStore {
    /// Brings an image from a file or directory into the store: the tar of a root file system (plain,
    /// gzip or zstd), an OCI layout or its archive, or what `docker save` writes.
    ///
    /// A root file system becomes an image of one layer. The same file gives the same digest each time.
    ///
    /// # Errors
    /// [`ImageError::BadArchive`] when it is none of these or lies about itself, and those of
    /// [`pull`](Self::pull) that are not about registries.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        events: &(dyn Fn(ImageEvent) + Sync),
    ) -> Result<ImageRecord> {
        let _span = tracing::info_span!("import", path = %path.display()).entered();
        // What comes in stays until its disk is there.
        let _hold = self.hold()?;
        let import = Import::new(self, path, options, events);
        if fs::metadata(path).context("open", path)?.is_dir() {
            return import.directory();
        }
        import.file()
    }
}

/// One import under way.
struct Import<'a> {
    store: &'a ImageStore,
    path: &'a Path,
    options: &'a ImportOptions,
    events: &'a (dyn Fn(ImageEvent) + Sync),
    told: Mutex<Instant>,
}

impl<'a> Import<'a> {
    fn new(
        store: &'a ImageStore,
        path: &'a Path,
        options: &'a ImportOptions,
        events: &'a (dyn Fn(ImageEvent) + Sync),
    ) -> Self {
        Self {
            store,
            path,
            options,
            events,
            told: Mutex::new(Instant::now()),
        }
    }
}

impl Import<'_> {
    fn directory(&self) -> Result<ImageRecord> {
        if !self.path.join("index.json").is_file() {
            return Err(self.refuse(
                "it is a directory without an `index.json`, so it is no OCI layout; give a tar of a root file system instead (tar -C DIR --numeric-owner -cf rootfs.tar .)",
            ));
        }
        let transaction = self.store.begin()?;
        self.layout(transaction, &Container::Directory(self.path.to_owned()))
    }

    /// Opens the file and looks at what it is: how it is compressed, and whether it is an image archive.
    fn look(&self) -> Result<(File, Compression, bool)> {
        // Looked at before it is opened: opening a FIFO would wait for ever.
        if !fs::metadata(self.path)
            .context("open", self.path)?
            .is_file()
        {
            return Err(self.refuse("it is neither a file nor a directory"));
        }
        let file = File::open(self.path).context("open", self.path)?;
        let mut head = Vec::new();
        (&file)
            .take(8)
            .read_to_end(&mut head)
            .context("read", self.path)?;
        let compression = Compression::sniff(&head);
        let rewind = |mut file: &File| file.seek(SeekFrom::Start(0)).context("read", self.path);
        rewind(&file)?;
        let archive = {
            let mut stream = Streamed(decoder(compression, &file).context("read", self.path)?);
            is_image_archive(&mut stream).map_err(|error| {
                self.refuse(format!(
                    "it is neither an image archive nor a tar of a root file system: {error}"
                ))
            })?
        };
        rewind(&file)?;
        Ok((file, compression, archive))
    }

    fn file(&self) -> Result<ImageRecord> {
        let (file, compression, archive) = self.look()?;
        let transaction = self.store.begin()?;
        if archive {
            let container =
                Container::archive(self.plain(file, compression, &transaction)?, self.path)?;
            let member = |name| Ok::<_, ImageError>(container.find(name)?.is_some());
            if member("index.json")? && member("oci-layout")? {
                return self.layout(transaction, &container);
            }
            if member("manifest.json")? {
                return self.saved(transaction, &container);
            }
            return Err(self.refuse("it looks like an image archive, but has neither `index.json` with `oci-layout` nor `manifest.json`"));
        }
        let length = file.metadata().context("look at", self.path)?.len();
        self.rootfs(transaction, file, length, compression)
    }

    /// An archive whose members can be sought: the file itself, or what it unpacks to.
    fn plain(
        &self,
        file: File,
        compression: Compression,
        transaction: &Transaction,
    ) -> Result<File> {
        if compression == Compression::None {
            return Ok(file);
        }
        let path = transaction.path("archive.tar");
        let mut plain = crate::store::files::create_new(&path)?;
        let reader = decoder(compression, &file).context("read", self.path)?;
        let copied = io::copy(&mut reader.take(MAX_ARCHIVE + 1), &mut plain)
            .map_err(|error| self.refuse(format!("it cannot be unpacked: {error}")))?;
        if copied > MAX_ARCHIVE {
            return Err(self.refuse(format!("it unpacks to more than {MAX_ARCHIVE} bytes")));
        }
        Ok(plain)
    }

    fn resolved(&self, reference: &Reference, chosen: &Chosen) {
        (self.events)(ImageEvent::Resolved {
            reference: reference.to_string(),
            digest: chosen.digest,
            layers: chosen.manifest.layers.len(),
            bytes: chosen.manifest.layers.iter().map(|layer| layer.size).sum(),
        });
    }

    fn publish(
        &self,
        transaction: &Transaction,
        reference: &Reference,
        chosen: &Chosen,
        mut blobs: Vec<StagedBlob>,
    ) -> Result<ImageRecord> {
        for bytes in [&chosen.config_bytes, &chosen.manifest_bytes] {
            blobs.push(crate::store::stage_bytes(transaction, bytes)?);
        }
        self.store
            .publish(transaction, &blobs, Entry::new(reference, chosen, None))
    }

    /// Ends an import: the operation's files go, the disk is held against its note. `built` says that
    /// this import made it.
    fn finish(
        &self,
        transaction: Transaction,
        mut record: ImageRecord,
        built: bool,
    ) -> Result<ImageRecord> {
        drop(transaction);
        if self.options.build_disk {
            let disk = self.store.base_disk(&record, &|event| {
                (self.events)(match event {
                    ImageEvent::DiskReady {
                        digest,
                        bytes,
                        existed,
                    } => ImageEvent::DiskReady {
                        digest,
                        bytes,
                        existed: existed && !built,
                    },
                    other => other,
                });
            })?;
            record.disk = Some(disk.path);
        }
        (self.events)(ImageEvent::Done {
            reference: record.reference.to_string(),
            digest: record.digest,
        });
        Ok(record)
    }

    /// The name to store an image under: the given one, or the first of the archive's own that is one.
    fn name(&self, own: &[String]) -> Result<Reference> {
        if let Some(reference) = &self.options.reference {
            return Ok(reference.clone());
        }
        own.iter()
            // A bare tag (`latest`) would read as a repository of that name.
            .filter(|name| name.contains([':', '/']))
            .find_map(|name| name.parse().ok())
            .ok_or_else(|| {
                self.refuse("it does not say the image's name; give one to import it under")
            })
    }

    /// At most one event in 100 ms, but always the last.
    fn may_tell(&self, last: bool) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last || told.elapsed() >= PROGRESS_EVERY;
        if due {
            *told = Instant::now();
        }
        due
    }

    fn refuse(&self, reason: impl Into<String>) -> ImageError {
        ImageError::BadArchive {
            path: self.path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// The tar stream inside `reader`.
fn decoder<'r>(
    compression: Compression,
    reader: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let reader = io::BufReader::with_capacity(256 << 10, reader);
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

/// Looks at the first members: image archives hold only blobs and a few known names at the top.
fn is_image_archive(stream: &mut dyn Skip) -> io::Result<bool> {
    for at in 0..64 {
        let Some(member) = tarball::next_member(stream)? else {
            return if at == 0 {
                Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"))
            } else {
                Ok(false)
            };
        };
        let (top, below) = match member.name.split_once('/') {
            Some((top, below)) => (top, Some(below)),
            None => (member.name.as_str(), None),
        };
        let stem = top
            .strip_suffix(".json")
            .or(top.strip_suffix(".tar"))
            .unwrap_or(top);
        let is_id = Digest::from_hex(stem).is_some();
        match (member.kind, top, below) {
            (Kind::Directory, "", _) | (Kind::Directory, "blobs", None | Some("sha256")) => {}
            (Kind::File, "oci-layout" | "index.json" | "manifest.json" | "repositories", None) => {
                return Ok(true);
            }
            (Kind::File, "blobs", Some(blob)) => {
                return Ok(blob
                    .strip_prefix("sha256/")
                    .is_some_and(|hex| Digest::from_hex(hex).is_some()));
            }
            _ if is_id => return Ok(true),
            _ => return Ok(false),
        }
        stream.skip(tarball::padded(member.size))?;
    }
    Ok(false)
}

/// Refuses OCI layouts of another version than 1.
pub(crate) fn check_layout_version(path: &Path, marker: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let refuse = |reason: String| ImageError::BadArchive {
        path: path.to_owned(),
        reason,
    };
    let marker: Marker = serde_json::from_slice(marker)
        .map_err(|error| refuse(format!("it is no OCI layout marker: {error}")))?;
    if marker.image_layout_version.starts_with("1.") {
        Ok(())
    } else {
        Err(refuse(format!(
            "its OCI layout version `{}` is unknown",
            clip(&marker.image_layout_version)
        )))
    }
}
