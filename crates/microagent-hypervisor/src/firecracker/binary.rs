//! Which Firecracker: found where it was named or on a search path, its version asked for.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    program::{Version, Wanted, find_program, is_executable},
};

/// What to do where it is missing.
pub(crate) const REMEDY: &str =
    "put a release of Firecracker 1.10 or newer on the PATH, or name it in MICROAGENT_FIRECRACKER";

const WANTED: Wanted = Wanted {
    program: "firecracker",
    product: "Firecracker",
    greeting: "Firecracker v",
    // ACPI tables that name the virtio devices, and the entropy device in snapshots.
    oldest: Version::new(1, 10, 0),
    remedy: REMEDY,
};

/// A Firecracker program that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirecrackerBinary {
    path: PathBuf,
    version: Version,
}

impl FirecrackerBinary {
    /// Takes the one at `named`, if one is named; else the first of a `PATH` value; else the one
    /// at `beside`, where an installation keeps programs that are not for people.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`], or as [`Self::at`].
    pub fn find(
        named: Option<&Path>,
        search_path: &OsStr,
        beside: Option<&Path>,
    ) -> Result<Self, Error> {
        if let Some(path) = named {
            return Self::at(path);
        }
        let found = find_program(OsStr::new(WANTED.program), search_path).or_else(|| {
            let path = beside?.join(WANTED.program);
            is_executable(&path).then_some(path)
        });
        Self::at(&found.ok_or_else(|| WANTED.missing(search_path))?)
    }

    /// Takes the program at this absolute path.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`] if it cannot be executed, [`Error::VmmStart`] if it does not
    /// answer like Firecracker, [`Error::Unsupported`] if it is too old.
    pub fn at(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            path: path.to_owned(),
            version: WANTED.at(path)?,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, wanted) in [
            (
                "Firecracker v1.10.1\n\nSupported snapshot data format versions: 4.0.0",
                "1.10.1",
            ),
            ("Firecracker v1.17.0-dev\n", "1.17.0"),
        ] {
            let version = WANTED.version(text).unwrap();
            assert_eq!(version.to_string(), wanted);
            assert!(version >= WANTED.oldest);
        }
        for text in [
            "",
            "QEMU emulator version 7.2.0",
            "Firecracker v1",
            "Firecracker vx.y.z",
        ] {
            assert_eq!(WANTED.version(text), None, "{text}");
        }
    }
}
