//! Where a copy lands: into a directory that is there, or as something new beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use microagent_protocol::{Landing, Shipment};

use crate::error::{Context, CopyError};

/// A destination, found out once before anything is landed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// The directory that everything goes below.
    pub(super) base: PathBuf,
    /// What the top of the stream is called there, if not as in the stream.
    pub(super) rename: Option<Vec<u8>>,
    /// Whether `base` was made for this.
    pub(super) made: bool,
}

impl Destination {
    pub(super) fn find(path: &Path, landing: &Landing) -> Result<Self, CopyError> {
        let into = |base: &Path, made| {
            Ok(Self {
                base: base.to_owned(),
                rename: None,
                made,
            })
        };
        let is_directory = match fs::metadata(path) {
            Ok(metadata) => Some(metadata.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("look at", path),
        };
        match (is_directory, landing.shipment) {
            (Some(true), _) => into(path, false),
            (Some(false), Shipment::Named) if !landing.into_directory => {
                // The file that a link leads to is replaced, not the link.
                Self::beside(&fs::canonicalize(path).context("look at", path)?)
            }
            (Some(false), _) => Err(CopyError::Conflict {
                path: path.to_owned(),
                reason: "is there, but it is not a directory",
            }),
            (None, Shipment::Named) if !landing.into_directory => {
                if landing.parents
                    && let Some(parent) = path.parent()
                {
                    fs::create_dir_all(parent).context("make", parent)?;
                }
                Self::beside(path)
            }
            (None, _) if landing.parents => {
                fs::create_dir_all(path).context("make", path)?;
                into(path, true)
            }
            (None, Shipment::Contents) => match fs::create_dir(path) {
                Ok(()) => into(path, true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(CopyError::NoDirectory {
                        path: path.parent().unwrap_or(path).to_owned(),
                    })
                }
                Err(error) => Err(error).context("make", path),
            },
            (None, _) => Err(CopyError::NoDirectory {
                path: path.to_owned(),
            }),
        }
    }

    /// Something new, or in place of a file, in the directory that holds it.
    fn beside(path: &Path) -> Result<Self, CopyError> {
        use std::os::unix::ffi::OsStrExt;
        let base = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !fs::metadata(base).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(CopyError::NoDirectory {
                path: base.to_owned(),
            });
        }
        let Some(name) = path.file_name() else {
            return Err(CopyError::NoDirectory {
                path: path.to_owned(),
            });
        };
        Ok(Self {
            base: base.to_owned(),
            rename: Some(name.as_bytes().to_vec()),
            made: false,
        })
    }
}
