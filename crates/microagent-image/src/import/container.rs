//! An image archive, as a directory or a tar file: parts by name, read within bounds, copied while hashed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use microagent_host::fs::{Positioned, reflink};

use super::tarball::Members;
use crate::choose::{Documents, Fetched};
use crate::config::MAX_CONFIG;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result, clip};
use crate::manifest::{self, Descriptor, MAX_MANIFEST};
use crate::store::files;
use crate::sync::Syncer;

/// Where an image's parts are.
pub(super) enum Container {
    Directory(PathBuf),
    Archive {
        file: File,
        /// What the user named, for messages.
        path: PathBuf,
        members: Members,
    },
}

/// One part: a piece of a file.
pub(super) struct Part {
    file: File,
    offset: u64,
    size: u64,
    path: PathBuf,
}

impl Container {
    pub(super) fn archive(file: File, path: &Path) -> Result<Self> {
        let members = Members::index(&file, path)?;
        Ok(Self::Archive {
            file,
            path: path.to_owned(),
            members,
        })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    pub(super) fn refuse(&self, reason: impl Into<String>) -> ImageError {
        ImageError::BadArchive {
            path: self.path().to_owned(),
            reason: reason.into(),
        }
    }

    /// The part called `name`, which must not climb; `None` where there is none.
    pub(super) fn find(&self, name: &str) -> Result<Option<Part>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                // Looked at before it is opened: opening a FIFO would wait for ever.
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => {}
                    Ok(_) => return Err(self.refuse(format!("`{}` is not a file", clip(name)))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error).context("look at", &path),
                }
                let file = File::open(&path).context("open", &path)?;
                let size = file.metadata().context("look at", &path)?.len();
                Ok(Some(Part {
                    file,
                    offset: 0,
                    size,
                    path,
                }))
            }
            Self::Archive {
                file,
                path,
                members,
            } => members
                .find(name)
                .map(|(offset, size)| {
                    Ok(Part {
                        file: file.try_clone().context("open", path)?,
                        offset,
                        size,
                        path: path.clone(),
                    })
                })
                .transpose(),
        }
    }

    /// The whole of a small part.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(part) = self.find(name)? else {
            return Ok(None);
        };
        if part.size > limit {
            return Err(self.refuse(format!("`{}` is larger than {limit} bytes", clip(name))));
        }
        let path = part.path.clone();
        let mut content = Vec::new();
        part.reader()?
            .read_to_end(&mut content)
            .context("read", &path)?;
        Ok(Some(content))
    }

    pub(super) fn blob(&self, digest: Digest) -> Result<Part> {
        self.find(&format!("blobs/sha256/{}", digest.hex()))?
            .ok_or_else(|| self.refuse(format!("its blob {digest} is missing")))
    }

    fn verified(&self, digest: Digest, limit: u64, what: &str) -> Result<Vec<u8>> {
        let bytes = self
            .read(&format!("blobs/sha256/{}", digest.hex()), limit)?
            .ok_or_else(|| self.refuse(format!("its blob {digest} is missing")))?;
        let actual = Digest::of(&bytes);
        if actual == digest {
            Ok(bytes)
        } else {
            Err(ImageError::DigestMismatch {
                what: format!("{what} in {}", self.path().display()),
                expected: digest,
                actual,
            })
        }
    }
}

impl Documents for Container {
    fn document(&self, digest: Digest) -> Result<Fetched> {
        let bytes = self.verified(digest, MAX_MANIFEST, "the manifest")?;
        let document = manifest::parse(&bytes)?;
        Ok(Fetched {
            bytes,
            digest,
            document,
        })
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.verified(descriptor.digest, MAX_CONFIG, "the configuration")
    }
}

impl Part {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The part from its first byte to its last. Any number of readers work side by side.
    pub(super) fn reader(&self) -> Result<PartReader> {
        Ok(PartReader {
            file: self.file.try_clone().context("open", &self.path)?,
            offset: self.offset,
            left: self.size,
        })
    }

    pub(super) fn head(&self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        self.reader()?
            .take(8)
            .read_to_end(&mut head)
            .context("read", &self.path)?;
        Ok(head)
    }

    /// What the part hashes to.
    pub(super) fn digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::default();
        self.each_piece(self.reader()?, &mut |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// Copies the part into the new file `to` and syncs it; returns what it hashes to. `progress`
    /// hears how many bytes were read.
    pub(super) fn copy(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<Digest> {
        let mut copy = Copy::begin(&self.file, self.offset, self.size, to.to_owned())?;
        let mut done = 0u64;
        let reader = match copy.shared()? {
            Some(file) => PartReader {
                file,
                offset: 0,
                left: self.size,
            },
            None => self.reader()?,
        };
        self.each_piece(reader, &mut |piece| {
            copy.add(piece)?;
            done += piece.len() as u64;
            progress(done);
            Ok(())
        })?;
        copy.finish()
    }

    fn each_piece(
        &self,
        mut reader: PartReader,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0u8; 256 << 10];
        while reader.left > 0 {
            let count = match reader.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("read", &self.path),
            };
            if count == 0 {
                return Err(ImageError::SizeMismatch {
                    what: self.path.display().to_string(),
                    expected: self.size,
                    actual: self.size - reader.left,
                });
            }
            take(&buffer[..count])?;
        }
        Ok(())
    }
}

/// Reads a part; it keeps its own place, since the parts of one archive share a file.
pub(super) struct PartReader {
    file: File,
    offset: u64,
    left: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A copy in the making, hashed as it goes. Where the file system can share the blocks of a whole
/// file, nothing is written.
pub(super) struct Copy {
    file: File,
    path: PathBuf,
    shared: bool,
    hasher: Hasher,
    syncer: Syncer,
    completed: bool,
}

impl Copy {
    /// `size` bytes from `offset` of `source` will be added.
    pub(super) fn begin(source: &File, offset: u64, size: u64, to: PathBuf) -> Result<Self> {
        let file = files::create_new(&to)?;
        let whole = offset == 0
            && source
                .metadata()
                .is_ok_and(|metadata| metadata.len() == size);
        let shared = whole && reflink(source, &file);
        let syncer = Syncer::new(&file).context("open", &to)?;
        Ok(Self {
            file,
            path: to,
            shared,
            hasher: Hasher::default(),
            syncer,
            completed: false,
        })
    }

    /// What is to be read in place of the source where the copy shares its blocks: the copy itself. The source may
    /// be changed meanwhile, and only what was hashed may be kept.
    pub(super) fn shared(&self) -> Result<Option<File>> {
        self.shared
            .then(|| File::open(&self.path).context("open", &self.path))
            .transpose()
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        if self.shared {
            return Ok(());
        }
        self.file
            .write_all(bytes)
            .and_then(|()| self.syncer.wrote(bytes.len()))
            .context("write", &self.path)
    }

    /// All is added: begins to sync, so that it costs nothing while others still work.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.completed, true) {
            self.syncer.request()?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Digest> {
        self.syncer.finish().context("sync", &self.path)?;
        Ok(self.hasher.finish())
    }
}
