//! Where an export goes: a file that has its name only once it is complete, or a stream; counted and hashed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::ExportTo;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, IoContext, Result};
use crate::store::files::{free_space, parent_of, sync_dir};
use crate::sync::Syncer;

const BUFFER: usize = 256 << 10;

/// What is written to.
pub(super) struct Output<'w> {
    sink: BufWriter<Sink<'w>>,
    hasher: Hasher,
    bytes: u64,
}

enum Sink<'w> {
    /// A new file beside `path`.
    New {
        temporary: NamedTempFile,
        path: PathBuf,
        syncer: Syncer,
    },
    /// Something that is there and no file: a pipe or a device.
    Special(File),
    Stream(&'w mut (dyn Write + Send)),
}

impl<'w> Output<'w> {
    pub(super) fn create(to: ExportTo<'w>) -> Result<Self> {
        let sink = match to {
            ExportTo::Stream(stream) => Sink::Stream(stream),
            ExportTo::Path(path) => Self::at(path)?,
        };
        Ok(Self {
            sink: BufWriter::with_capacity(BUFFER, sink),
            hasher: Hasher::default(),
            bytes: 0,
        })
    }

    fn at(path: &Path) -> Result<Sink<'w>> {
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                return Err(ImageError::CannotExport {
                    what: path.display().to_string(),
                    reason: "it is a directory; name a file".into(),
                });
            }
            Ok(there) if !there.is_file() => {
                let file = File::options().write(true).open(path);
                return Ok(Sink::Special(file.context("open", path)?));
            }
            _ => {}
        }
        let directory = parent_of(path);
        let temporary = tempfile::Builder::new()
            .prefix(".microagent-export-")
            .suffix(".partial")
            .tempfile_in(directory)
            .context("create a file in", directory)?;
        let syncer = Syncer::new(temporary.as_file()).context("create", path)?;
        Ok(Sink::New {
            temporary,
            path: path.to_owned(),
            syncer,
        })
    }

    /// How many bytes were written.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts all of it on stable storage and gives it its name.
    pub(super) fn finish(mut self) -> Result<(u64, Option<Digest>)> {
        let file = self.file();
        let file = file.as_deref();
        self.sink.flush().map_err(|error| failure(error, file))?;
        let sink = match self.sink.into_inner() {
            Ok(sink) => sink,
            Err(error) => return Err(failure(error.into_error(), file)),
        };
        if let Sink::New {
            temporary,
            path,
            mut syncer,
        } = sink
        {
            syncer.request().context("sync", &path)?;
            syncer.finish().context("sync", &path)?;
            temporary.as_file().sync_all().context("sync", &path)?;
            temporary
                .persist(&path)
                .map_err(|error| error.error)
                .context("replace", &path)?;
            sync_dir(parent_of(&path))?;
        }
        Ok((self.bytes, Some(self.hasher.finish())))
    }

    /// Says where writing failed.
    pub(super) fn failed(&self, source: io::Error) -> ImageError {
        failure(source, self.file().as_deref())
    }

    /// The file, where it is one.
    pub(super) fn file(&self) -> Option<PathBuf> {
        match self.sink.get_ref() {
            Sink::New { path, .. } => Some(path.clone()),
            Sink::Special(_) | Sink::Stream(_) => None,
        }
    }
}

/// A failure to write to `file`, or to what is none: how much is free there is not known.
pub(super) fn failure(source: io::Error, file: Option<&Path>) -> ImageError {
    match file {
        Some(path) => no_space(source, path),
        None => ImageError::Io {
            doing: "write",
            path: "the output".into(),
            source,
        },
    }
}

/// A failure to write to `path`.
pub(super) fn no_space(source: io::Error, path: &Path) -> ImageError {
    let directory = parent_of(path);
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImageError::NoSpace {
            what: "the export".into(),
            path: directory.to_owned(),
            needed: None,
            available: free_space(directory).unwrap_or(0),
        },
        _ => ImageError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        },
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::New {
                temporary, syncer, ..
            } => {
                let count = temporary.as_file_mut().write(bytes)?;
                syncer.wrote(count)?;
                Ok(count)
            }
            Self::Special(file) => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::New { .. } => Ok(()),
            Self::Special(file) => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}
