//! The disk file: temporary until it is complete, on stable storage before it has its name.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::content::{BLOCK, BlockFile};
use super::error::DiskError;

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

/// Writes blocks to a file, and has them on their way to stable storage while more arrive: a sync that begins only
/// at the end would take as long as everything before it.
pub(crate) struct FileBlocks<'f> {
    file: &'f File,
    syncer: SyncSender<()>,
    unsynced: usize,
}

impl<'f> FileBlocks<'f> {
    const SYNC_EVERY: usize = 32 << 20;

    /// Starts the syncing thread; it ends with this value, and its result must be asked for: a write error is
    /// reported by the host only once.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        file: &'f File,
    ) -> io::Result<(Self, ScopedJoinHandle<'scope, io::Result<()>>)>
    where
        'f: 'scope,
    {
        let (syncer, requests) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("disk-sync".to_owned())
            .spawn_scoped(scope, move || {
                requests.iter().try_for_each(|()| file.sync_data())
            })?;
        Ok((
            FileBlocks {
                file,
                syncer,
                unsynced: 0,
            },
            thread,
        ))
    }
}

impl BlockFile for FileBlocks<'_> {
    fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        self.file
            .write_all_at(bytes, u64::from(block) * BLOCK as u64)?;
        self.unsynced += bytes.len();
        if self.unsynced >= Self::SYNC_EVERY {
            self.unsynced = 0;
            // Full: a sync is waiting to begin and will cover these blocks. Gone: its error is reported by `join`.
            let _ = self.syncer.try_send(());
        }
        Ok(())
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

/// SHA-256 of the whole file.
pub(crate) fn digest(file: &File, size: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut offset = 0;
    while offset < size {
        let want = (size - offset).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..want], offset)?;
        hasher.update(&buffer[..want]);
        offset += want as u64;
    }
    Ok(hasher.finalize().into())
}
