//! A disk as one file, for VMMs that cannot join files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use microagent_host::fs::{Private, set_mode, sync_dir};
use microagent_host::lock::{Lock, Sharing};

use crate::JoinedFile;

/// What the name of a disk in one file ends in, beside its list.
const FLAT: &str = "flat";
/// What it ends in while it is made.
const PARTIAL: &str = "flat-partial";

impl JoinedFile {
    /// The files that [`flat`](Self::flat) may leave beside the list at `path`.
    #[must_use]
    pub fn flat_files(path: &Path) -> [PathBuf; 2] {
        [path.with_extension(FLAT), path.with_extension(PARTIAL)]
    }

    /// The disk as one file beside its list at `path`: made at the first call, by one process while others wait.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flat(&self, path: &Path) -> io::Result<PathBuf> {
        let [flat, partial] = Self::flat_files(path);
        if self.is_whole(&flat) {
            return Ok(flat);
        }
        // What a crash left is written over. Its lock goes with the process.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .private()
            .open(&partial)?;
        let lock = Lock::wait(file, Sharing::Exclusive, || ())?;
        if self.is_whole(&flat) {
            // Another process made it; what is locked here has its name now, or is nothing.
            return Ok(flat);
        }
        let mut file = lock.file();
        file.set_len(0)?;
        for (from, run) in self.runs() {
            let mut from: &File = from;
            from.seek(SeekFrom::Start(run.offset))?;
            let copied = io::copy(&mut from.take(run.length), &mut file)?;
            if copied != run.length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        set_mode(file, 0o400)?;
        file.sync_all()?;
        fs::rename(&partial, &flat)?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(flat)
    }

    fn is_whole(&self, flat: &Path) -> bool {
        fs::metadata(flat).is_ok_and(|metadata| metadata.len() == self.size_bytes())
    }
}
