//! The disk file: temporary until it is complete, on stable storage before it has its name.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::content::{BLOCK, BlockFile};
use super::error::DiskError;
use crate::sync::Syncer;

/// A disk being written beside its final place, as `.<name>.<random>.partial`; removed if it is dropped.
#[derive(Debug)]
pub(crate) struct Output {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl Output {
    pub(crate) fn create(path: &Path) -> Result<Self, DiskError> {
        let fail = |source| DiskError::Output {
            action: "create",
            path: path.to_owned(),
            source,
        };
        let name = path.file_name().ok_or_else(|| {
            fail(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it has no file name",
            ))
        })?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .tempfile_in(directory_of(path))
            .map_err(fail)?;
        Ok(Output {
            temporary,
            path: path.to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    pub(crate) fn error(
        &self,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::Output {
            action,
            path,
            source,
        }
    }

    /// Puts everything on stable storage, then gives the file its name and `mode`.
    pub(crate) fn publish(self, mode: u32) -> Result<(), DiskError> {
        let file = self.temporary.as_file();
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(self.error("set the mode of"))?;
        file.sync_all().map_err(self.error("sync"))?;
        let (path, fail) = (self.path.clone(), self.error("rename"));
        self.temporary
            .persist(&path)
            .map_err(|error| fail(error.error))?;
        File::open(directory_of(&path))
            .and_then(|directory| directory.sync_all())
            .map_err(|source| DiskError::Output {
                action: "sync the directory of",
                path,
                source,
            })
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes blocks to a file, and has them on their way to stable storage while more arrive.
pub(crate) struct FileBlocks<'f> {
    file: &'f File,
    syncer: Syncer,
}

impl<'f> FileBlocks<'f> {
    pub(crate) fn new(file: &'f File) -> io::Result<Self> {
        let syncer = Syncer::new(file)?;
        Ok(FileBlocks { file, syncer })
    }

    /// All is written: what is to be asked whether it is on stable storage.
    pub(crate) fn sync(mut self) -> io::Result<Syncer> {
        self.syncer.request()?;
        Ok(self.syncer)
    }
}

impl BlockFile for FileBlocks<'_> {
    fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        self.file
            .write_all_at(bytes, u64::from(block) * BLOCK as u64)?;
        self.syncer.wrote(bytes.len())
    }
}

/// Gives blocks that no file has any more back to the host, so that nothing of them stays readable.
pub(crate) fn discard(file: &File, runs: &[(u32, u32)]) -> io::Result<()> {
    for (start, length) in runs {
        let (offset, length) = (
            u64::from(*start) * BLOCK as u64,
            u64::from(*length) * BLOCK as u64,
        );
        if !punch(file, offset, length)? {
            let zeros = vec![0u8; 1 << 20];
            let mut done = 0;
            while done < length {
                let take = (length - done).min(zeros.len() as u64);
                file.write_all_at(&zeros[..take as usize], offset + done)?;
                done += take;
            }
        }
    }
    Ok(())
}

/// `false` where the file system cannot make holes.
#[cfg(target_os = "linux")]
fn punch(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        length,
    ) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

/// SHA-256 of the whole file: read on one thread, hashed on another.
pub(crate) fn digest(file: &File, size: u64) -> io::Result<[u8; 32]> {
    const PIECE: u64 = 1 << 20;
    const PIECES: usize = 2;
    std::thread::scope(|scope| {
        let (sender, pieces) = sync_channel::<io::Result<Vec<u8>>>(PIECES);
        let (used, recycled) = channel::<Vec<u8>>();
        std::thread::Builder::new()
            .name("disk-read".to_owned())
            .spawn_scoped(scope, move || {
                let mut offset = 0;
                while offset < size {
                    let want = (size - offset).min(PIECE);
                    let mut piece = recycled.try_recv().unwrap_or_default();
                    piece.resize(want as usize, 0);
                    let read = file.read_exact_at(&mut piece, offset).map(|()| piece);
                    let failed = read.is_err();
                    // Nobody takes it where hashing ended early, which it does only after an error.
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                    offset += want;
                }
            })?;
        let mut hasher = Sha256::new();
        for piece in pieces {
            let piece = piece?;
            hasher.update(&piece);
            // Nobody takes it back once all is read.
            let _ = used.send(piece);
        }
        Ok(hasher.finalize().into())
    })
}
