//! Where there are no trees as a guest has them (modes, owners, links): copies say so.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, BufRead, Write},
    path::Path,
};

use microagent_protocol::{CopyReport, CopyWhat, Landing};

use crate::{
    error::{Context, CopyError},
    incoming::Policy,
};

/// An open directory that [`Temporary`] files are made in. There is none here.
#[derive(Debug)]
pub struct FolderHandle(Infallible);

/// Opens a directory to make files in it.
///
/// # Errors
/// Always, on this system.
pub fn open_folder(_path: &Path) -> io::Result<FolderHandle> {
    Err(io::Error::new(io::ErrorKind::Unsupported, REASON))
}

/// Makes the names last that were given in a directory.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &FolderHandle) -> io::Result<()> {
    match folder.0 {}
}

/// Made, but not under its name yet. There is none here.
#[derive(Debug)]
pub struct Temporary(Infallible);

impl Temporary {
    /// An empty file in `folder`, for its owner alone.
    ///
    /// # Errors
    /// The system's.
    pub fn file(folder: &FolderHandle) -> io::Result<Self> {
        match folder.0 {}
    }

    /// The open file. `shown` is what it is called in messages.
    ///
    /// # Errors
    /// The system's.
    pub fn file_mut(&mut self, _shown: &Path) -> Result<File, CopyError> {
        match self.0 {}
    }

    /// Gives it its name in `folder`, in place of the file that has it now.
    ///
    /// # Errors
    /// The system's.
    pub fn publish(
        self,
        _folder: &FolderHandle,
        _name: &[u8],
        _shown: &Path,
    ) -> Result<(), CopyError> {
        match self.0 {}
    }
}

const REASON: &str = "directories of this system are not copied yet; copy a tar stream (-)";

fn unsupported<T>(doing: &'static str, path: &Path) -> Result<T, CopyError> {
    Err(io::Error::new(io::ErrorKind::Unsupported, REASON)).context(doing, path)
}

/// Packs what is at `path` and gives the stream back.
///
/// # Errors
/// Always, on this system.
pub fn pack<W: Write>(
    path: &Path,
    _what: CopyWhat,
    _output: W,
) -> Result<(W, CopyReport), CopyError> {
    unsupported("pack", path)
}

/// Lands what `input` brings at `destination`.
///
/// # Errors
/// Always, on this system.
pub fn land(
    _input: impl BufRead,
    destination: &Path,
    _landing: &Landing,
    _policy: &Policy,
) -> Result<CopyReport, CopyError> {
    unsupported("copy to", destination)
}
