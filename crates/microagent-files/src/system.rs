//! Where the systems that have such trees differ: what Linux alone has, and what stands for it elsewhere.

use std::{ffi::OsStr, fs::File, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, Dev, FileType, Mode, OFlags, fsync, openat},
    io::Errno,
};

/// An open directory that [`Temporary`](crate::Temporary) files are made in.
pub type FolderHandle = OwnedFd;

/// Opens a directory to make files in it.
///
/// # Errors
/// The system's.
pub fn open_folder(path: &Path) -> io::Result<FolderHandle> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Makes the names last that were given in a directory.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &FolderHandle) -> io::Result<()> {
    Ok(fsync(folder)?)
}

/// To open a directory only to go through it; where there is no such thing, to read it.
pub(crate) const PASS: OFlags = {
    #[cfg(target_os = "linux")]
    {
        OFlags::PATH
    }
    #[cfg(not(target_os = "linux"))]
    {
        OFlags::RDONLY
    }
};

/// An empty file in `folder` that has no name yet; `None` where files cannot be without one.
#[cfg(target_os = "linux")]
pub(crate) fn nameless_file(folder: &OwnedFd, mode: Mode) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::TMPFILE;
    match openat(folder, ".", flags, mode) {
        Ok(file) => Ok(Some(file)),
        // Not every file system has files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An empty file in `folder` that has no name yet; `None` where files cannot be without one.
#[cfg(not(target_os = "linux"))]
pub(crate) fn nameless_file(_folder: &OwnedFd, _mode: Mode) -> Result<Option<OwnedFd>, Errno> {
    Ok(None)
}

/// Gives an open file without a name a name.
#[cfg(target_os = "linux")]
pub(crate) fn name_file(file: &File, folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, linkat};

    // Directly takes a privilege, the other way /proc.
    match linkat(file, "", folder, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, path, folder, name, AtFlags::SYMLINK_FOLLOW)
        }
        result => result,
    }
}

/// Gives an open file without a name a name; there are none here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn name_file(_file: &File, _folder: &OwnedFd, _name: &OsStr) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}

/// Makes a device or a pipe.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn make_node(
    folder: &OwnedFd,
    name: &OsStr,
    kind: FileType,
    mode: Mode,
    device: Dev,
) -> Result<(), Errno> {
    rustix::fs::mknodat(folder, name, kind, mode, device)
}

/// Devices of a guest mean nothing here, and pipes cannot be made below an open directory.
#[cfg(target_vendor = "apple")]
pub(crate) fn make_node(
    _folder: &OwnedFd,
    _name: &OsStr,
    _kind: FileType,
    _mode: Mode,
    _device: Dev,
) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}
