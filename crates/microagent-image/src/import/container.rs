//! An image archive, as a directory or a tar file: parts by name, read within bounds, copied while hashed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::tarball::Members;
use crate::choose::{Documents, Fetched};
use crate::config::MAX_CONFIG;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result, clip};
use crate::manifest::{self, Descriptor, MAX_MANIFEST};
use crate::store::files;

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
        let Some(mut part) = self.find(name)? else {
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

    /// The part from its first byte to its last. Parts of one archive share a file position, so only
    /// one may be read at a time.
    pub(super) fn reader(&mut self) -> Result<io::Take<&File>> {
        self.file
            .seek(SeekFrom::Start(self.offset))
            .context("read", &self.path)?;
        Ok((&self.file).take(self.size))
    }

    pub(super) fn head(&mut self) -> Result<Vec<u8>> {
        let path = self.path.clone();
        let mut head = Vec::new();
        self.reader()?
            .take(8)
            .read_to_end(&mut head)
            .context("read", &path)?;
        Ok(head)
    }

    /// Copies the part into the new file `to` and syncs it; returns what it hashes to. `progress`
    /// hears how many bytes were read.
    pub(super) fn copy(&mut self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<Digest> {
        let path = self.path.clone();
        let mut copy = Copy::begin(&self.file, self.offset, self.size, to.to_owned())?;
        let mut reader = self.reader()?;
        let mut buffer = vec![0u8; 256 << 10];
        let mut done = 0u64;
        loop {
            let count = reader.read(&mut buffer).context("read", &path)?;
            if count == 0 {
                break;
            }
            copy.add(&buffer[..count])?;
            done += count as u64;
            progress(done);
        }
        if done != self.size {
            return Err(ImageError::SizeMismatch {
                what: path.display().to_string(),
                expected: self.size,
                actual: done,
            });
        }
        copy.finish()
    }
}

/// A copy in the making, hashed as it goes. Where the file system can share the blocks of a whole
/// file, nothing is written.
pub(super) struct Copy {
    file: File,
    path: PathBuf,
    shared: bool,
    hasher: Hasher,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl Copy {
    /// `size` bytes from `offset` of `source` will be added.
    pub(super) fn begin(source: &File, offset: u64, size: u64, to: PathBuf) -> Result<Self> {
        let file = files::create_new(&to)?;
        let whole = offset == 0
            && source
                .metadata()
                .is_ok_and(|metadata| metadata.len() == size);
        let shared = whole && share_blocks(&file, source);
        Ok(Self {
            file,
            path: to,
            shared,
            hasher: Hasher::default(),
            syncing: None,
        })
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        if self.shared {
            return Ok(());
        }
        self.file.write_all(bytes).context("write", &self.path)
    }

    /// All is added: begins to sync, so that it costs nothing while others still work.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        if self.syncing.is_none() {
            let file = self.file.try_clone()?;
            self.syncing = Some(std::thread::spawn(move || file.sync_data()));
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Digest> {
        let synced = match self.syncing.take().map(JoinHandle::join) {
            Some(Ok(synced)) => synced,
            Some(Err(_)) | None => self.file.sync_data(),
        };
        synced.context("sync", &self.path)?;
        Ok(self.hasher.finish())
    }
}

#[cfg(target_os = "linux")]
fn share_blocks(to: &File, from: &File) -> bool {
    // Most file systems cannot; then the bytes are written as they are hashed.
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn share_blocks(_to: &File, _from: &File) -> bool {
    false
}
