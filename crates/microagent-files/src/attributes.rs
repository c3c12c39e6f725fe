//! Extended attributes: which ones travel, and how they are read and set.

#[cfg(unix)]
use std::{io, os::fd::AsFd, path::Path};

#[cfg(unix)]
use rustix::{
    fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr},
    io::Errno,
};

#[cfg(unix)]
use crate::error::{Context, CopyError};

/// Attributes by full name.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The longest list of names that is read.
#[cfg(unix)]
const MAX_LIST: usize = 64 * 1024;

/// The longest value that is read.
#[cfg(unix)]
const MAX_VALUE: usize = 64 * 1024;

/// The capabilities a program gets when it is run.
const CAPABILITY: &[u8] = b"security.capability";

/// Whether an attribute belongs to a file wherever it is. Others (of access control lists, security
/// modules, overlays) mean something only to the system they are on.
#[must_use]
pub fn travels(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == CAPABILITY
}

/// Whether an attribute gives a program rights it would not have without it.
pub(crate) fn is_privilege(name: &[u8]) -> bool {
    name == CAPABILITY
}

/// The attributes of an open file or directory that travel; none where there is no such thing.
#[cfg(unix)]
pub(crate) fn read(file: impl AsFd, path: &Path) -> Result<Attributes, CopyError> {
    let mut names = vec![0; 1024];
    let length = loop {
        match flistxattr(&file, &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < MAX_LIST => names.resize(MAX_LIST, 0),
            Err(Errno::NOTSUP | Errno::PERM) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("list the attributes of", path),
        }
    };
    let mut attributes = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if !travels(name) {
            continue;
        }
        let mut value = vec![0; MAX_VALUE];
        match fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            // It went away meanwhile.
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error).context("read the attributes of", path),
        }
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

/// Sets one attribute; gives whether the file system has such a thing.
#[cfg(unix)]
pub(crate) fn set(file: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<bool> {
    match fsetxattr(file, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOTSUP | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
