//! Kernel and initramfs as a VMM without privileges can open them.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use crate::Error;

/// A file a VMM reads by name.
pub(crate) struct BootFile {
    pub(crate) name: PathBuf,
    /// What the name leads to, where the VMM could not open the file itself.
    pub(crate) copy: Option<OwnedFd>,
}

impl BootFile {
    /// A VMM runs without capabilities. Started by root it could not read what
    /// belongs to somebody else, so it gets a copy in memory then.
    pub(crate) fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let fail = |source: std::io::Error| Error::Io {
            context: format!("open the {what} {}", path.display()),
            source,
        };
        let mut file = File::open(path).map_err(fail)?;
        if !rustix::process::geteuid().is_root() || readable_by_plain_root(path).map_err(fail)? {
            return Ok(Self {
                name: path.to_owned(),
                copy: None,
            });
        }
        let copy = rustix::fs::memfd_create(what, rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|errno| fail(errno.into()))?;
        let mut writer = File::from(copy);
        std::io::copy(&mut file, &mut writer).map_err(fail)?;
        let copy = OwnedFd::from(writer);
        Ok(Self {
            name: format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
            copy: Some(copy),
        })
    }
}

/// Whether user 0 without capabilities can read the file at this path.
fn readable_by_plain_root(path: &Path) -> std::io::Result<bool> {
    let real = std::fs::canonicalize(path)?;
    for (depth, part) in real.ancestors().enumerate() {
        let meta = std::fs::metadata(part)?;
        let needed = if depth == 0 { 0o4 } else { 0o1 };
        let shift = if meta.uid() == 0 { 6 } else { 0 };
        if (meta.mode() >> shift) & needed == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
