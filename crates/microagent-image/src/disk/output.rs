//! The disk file: temporary until it is complete, on stable storage before it has its name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use microagent_host::fs::{Positioned, set_mode, sync_dir};
use tempfile::NamedTempFile;

use super::buffer::{PAGE, PageBuffer};
use super::content::{BLOCK, BUFFER_BLOCKS, BlockFile};
use super::error::DiskError;
use super::sink::Sink;
use super::sums::{ChunkSums, SumsInOrder};
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

    /// Gives the file its name and `mode`, without a word of when it is on stable storage.
    pub(crate) fn publish_unsynced(self, mode: u32) -> Result<(), DiskError> {
        let file = self.temporary.as_file();
        set_mode(file, mode).map_err(self.error("set the mode of"))?;
        let (path, fail) = (self.path.clone(), self.error("rename"));
        self.temporary
            .persist(&path)
            .map(drop)
            .map_err(|error| fail(error.error))
    }

    /// Puts everything on stable storage, then gives the file its name and `mode`.
    pub(crate) fn publish(self, mode: u32) -> Result<(), DiskError> {
        let file = self.temporary.as_file();
        set_mode(file, mode).map_err(self.error("set the mode of"))?;
        file.sync_all().map_err(self.error("sync"))?;
        let (path, fail) = (self.path.clone(), self.error("rename"));
        self.temporary
            .persist(&path)
            .map_err(|error| fail(error.error))?;
        sync_dir(directory_of(&path)).map_err(|source| DiskError::Output {
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
///
/// A thread of its own writes and hashes whole buffers, so that whoever fills them only fills them.
pub(crate) struct FileBlocks {
    file: File,
    writer: Writer,
    used: Receiver<PageBuffer>,
    /// Written here, not by the thread.
    apart: Vec<(u64, u64)>,
}

/// What the thread gave back.
struct Done {
    syncer: Option<Syncer>,
    sums: Option<SumsInOrder>,
}

enum Writer {
    Working {
        buffers: SyncSender<(u32, PageBuffer)>,
        thread: JoinHandle<io::Result<Done>>,
    },
    /// It has failed, and its error was told.
    Failed,
}

/// What is written but not yet known to be on stable storage.
pub(crate) struct Unsynced {
    /// None where nobody wants it to be.
    syncer: Option<Syncer>,
    sums: Option<SumsInOrder>,
}

impl FileBlocks {
    /// Buffers on their way to the thread.
    const BUFFERS: usize = 4;

    /// What writing takes at most: buffers on their way, the one being written and the one being filled.
    pub(super) const MEMORY: u64 = ((Self::BUFFERS + 2) * (BUFFER_BLOCKS * BLOCK + PAGE)) as u64;

    /// For a file that is empty so far; `hashed` says whether its sums will be asked for, `synced` whether it is to
    /// be on stable storage in the end.
    pub(crate) fn new(file: &File, hashed: bool, synced: bool) -> io::Result<Self> {
        let (buffers, arriving) = sync_channel::<(u32, PageBuffer)>(Self::BUFFERS);
        let (recycle, used) = channel();
        let mut sink = Sink::new(file)?;
        let mut done = Done {
            syncer: synced.then(|| Syncer::new(file)).transpose()?,
            sums: hashed.then(SumsInOrder::default),
        };
        let thread = Builder::new()
            .name("disk-write".to_owned())
            .spawn(move || {
                let mut end = 0;
                for (block, mut bytes) in arriving {
                    let at = offset(block);
                    sink.write(&bytes, at)?;
                    end = at + bytes.len() as u64;
                    if let Some(syncer) = &mut done.syncer {
                        syncer.wrote(bytes.len())?;
                    }
                    if let Some(sums) = &mut done.sums {
                        sums.wrote(at, &bytes);
                    }
                    bytes.clear();
                    // Nobody takes it back where all is written.
                    let _ = recycle.send(bytes);
                }
                sink.finish(end);
                Ok(done)
            })?;
        Ok(FileBlocks {
            file: file.try_clone()?,
            writer: Writer::Working { buffers, thread },
            used,
            apart: Vec::new(),
        })
    }

    /// All is written, and `freed` are runs of blocks to be given back: begins to sync.
    pub(crate) fn finish(mut self, freed: &[(u32, u32)]) -> io::Result<Unsynced> {
        let Done {
            mut syncer,
            mut sums,
        } = self.join()?;
        discard(&self.file, freed)?;
        if let Some(syncer) = &mut syncer {
            syncer.request()?;
        }
        if let Some(sums) = &mut sums {
            let freed = freed
                .iter()
                .map(|(start, length)| (offset(*start), offset(*length)));
            for (at, length) in freed.chain(self.apart.iter().copied()) {
                sums.changed(at, length);
            }
        }
        Ok(Unsynced { syncer, sums })
    }

    fn join(&mut self) -> io::Result<Done> {
        match std::mem::replace(&mut self.writer, Writer::Failed) {
            Writer::Working { buffers, thread } => {
                drop(buffers);
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
            }
            Writer::Failed => Err(io::Error::other("the disk was not written")),
        }
    }
}

impl Unsynced {
    /// Waits until all is on stable storage, where that was wanted.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.syncer.map_or(Ok(()), Syncer::finish)
    }

    /// The sums of the whole file, which has its final size: what was not written in order is read back.
    pub(crate) fn sums(&mut self, file: &File, size_bytes: u64) -> io::Result<ChunkSums> {
        let known = self.sums.take().unwrap_or_default();
        known.complete(file, size_bytes)
    }
}

impl BlockFile for FileBlocks {
    fn write_blocks(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset(block))?;
        self.apart.push((offset(block), bytes.len() as u64));
        Ok(())
    }

    fn write_buffer(&mut self, block: u32, buffer: &mut PageBuffer) -> io::Result<()> {
        let empty = self.used.try_recv().unwrap_or_default();
        let full = std::mem::replace(buffer, empty);
        if let Writer::Working { buffers, .. } = &self.writer
            && buffers.send((block, full)).is_ok()
        {
            return Ok(());
        }
        // The thread ended early, and can say why.
        self.join()
            .and(Err(io::Error::other("the disk was not written")))
    }
}

fn offset(block: u32) -> u64 {
    u64::from(block) * BLOCK as u64
}

/// Gives blocks that no file has any more back to the host, so that nothing of them stays readable.
fn discard(file: &File, runs: &[(u32, u32)]) -> io::Result<()> {
    for (start, length) in runs {
        let (at, length) = (offset(*start), offset(*length));
        if !punch(file, at, length)? {
            let zeros = vec![0u8; 1 << 20];
            let mut done = 0;
            while done < length {
                let take = (length - done).min(zeros.len() as u64);
                file.write_all_at(&zeros[..take as usize], at + done)?;
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
