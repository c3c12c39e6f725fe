//! Which Firecracker: found where it was named or on a search path, its version asked for.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    program::{ask, find_program, first_line, is_executable},
};

const PROGRAM: &str = "firecracker";

/// What to do where it is missing.
pub(crate) const REMEDY: &str =
    "put a release of Firecracker 1.10 or newer on the PATH, or name it in MICROAGENT_FIRECRACKER";

/// A version of Firecracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirecrackerVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl FirecrackerVersion {
    /// The oldest with everything this driver asks for: ACPI tables that name the virtio devices,
    /// and the entropy device in snapshots.
    pub const OLDEST: Self = Self {
        major: 1,
        minor: 10,
        patch: 0,
    };
}

impl std::fmt::Display for FirecrackerVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A Firecracker program that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirecrackerBinary {
    path: PathBuf,
    version: FirecrackerVersion,
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
        let found = find_program(OsStr::new(PROGRAM), search_path).or_else(|| {
            let path = beside?.join(PROGRAM);
            is_executable(&path).then_some(path)
        });
        match found {
            Some(path) => Self::at(&path),
            None => Err(Error::ProgramMissing {
                program: PROGRAM.to_owned(),
                searched: search_path.to_string_lossy().into_owned(),
                remedy: REMEDY.to_owned(),
            }),
        }
    }

    /// Takes the program at this absolute path.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`] if it cannot be executed, [`Error::VmmStart`] if it does not
    /// answer like Firecracker, [`Error::Unsupported`] if it is too old.
    pub fn at(path: &Path) -> Result<Self, Error> {
        if !path.is_absolute() || !is_executable(path) {
            return Err(Error::ProgramMissing {
                program: PROGRAM.to_owned(),
                searched: path.display().to_string(),
                remedy: REMEDY.to_owned(),
            });
        }
        let answer = ask(path, &["--version"])?;
        let version = parse_version(&answer).ok_or_else(|| Error::VmmStart {
            program: path.to_owned(),
            reason: format!("it does not tell its version: {:?}", first_line(&answer)),
        })?;
        if version < FirecrackerVersion::OLDEST {
            return Err(Error::Unsupported(format!(
                "{} is Firecracker {version}; {} or newer is needed; {REMEDY}",
                path.display(),
                FirecrackerVersion::OLDEST
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            version,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> FirecrackerVersion {
        self.version
    }
}

/// The version in `Firecracker v1.10.1` or `Firecracker v1.17.0-dev`.
fn parse_version(answer: &str) -> Option<FirecrackerVersion> {
    let words = first_line(answer).strip_prefix("Firecracker v")?;
    let end = words
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(words.len());
    let mut numbers = words[..end].split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(FirecrackerVersion {
        major: next()?,
        minor: next()?,
        patch: next()?,
    })
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
            let version = parse_version(text).unwrap();
            assert_eq!(version.to_string(), wanted);
            assert!(version >= FirecrackerVersion::OLDEST);
        }
        for text in [
            "",
            "QEMU emulator version 7.2.0",
            "Firecracker v1",
            "Firecracker vx.y.z",
        ] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }
}
