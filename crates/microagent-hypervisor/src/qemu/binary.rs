//! Which QEMU: found on a search path, its version asked for with a deadline.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    program::{ask, find_program, first_line, is_executable},
};

/// The system emulator for this host's own architecture.
const PROGRAM: &str = if cfg!(target_arch = "aarch64") {
    "qemu-system-aarch64"
} else {
    "qemu-system-x86_64"
};

/// What to install where it is missing.
pub(crate) const REMEDY: &str = if cfg!(target_arch = "aarch64") {
    "install QEMU (Debian, Ubuntu: qemu-system-arm; Fedora: qemu-system-aarch64-core; Alpine: qemu-system-aarch64)"
} else {
    "install QEMU (Debian, Ubuntu: qemu-system-x86; Fedora: qemu-system-x86-core; Alpine: qemu-system-x86_64)"
};

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QemuVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

impl QemuVersion {
    /// The oldest that has everything this driver asks for
    /// (`memory-backend-memfd`, microvm with ACPI, vhost-user-vsock with chardev descriptors).
    pub const OLDEST: Self = Self {
        major: 6,
        minor: 2,
        micro: 0,
    };

    /// The oldest with network cards on a socket it inherits (`-netdev stream`).
    pub const STREAMS: Self = Self {
        major: 7,
        minor: 2,
        micro: 0,
    };
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU program that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBinary {
    path: PathBuf,
    version: QemuVersion,
}

impl QemuBinary {
    /// Finds the emulator for this architecture on a `PATH` value.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`], or as [`QemuBinary::at`].
    pub fn find(search_path: &OsStr) -> Result<Self, Error> {
        Self::at(&Self::locate(search_path)?)
    }

    /// Where the emulator for this architecture is; it is not asked anything.
    pub(crate) fn locate(search_path: &OsStr) -> Result<PathBuf, Error> {
        find_program(OsStr::new(PROGRAM), search_path).ok_or_else(|| Error::ProgramMissing {
            program: PROGRAM.to_owned(),
            searched: search_path.to_string_lossy().into_owned(),
            remedy: REMEDY.to_owned(),
        })
    }

    /// One that told its version before and has not changed since.
    pub(crate) fn known(path: &Path, version: QemuVersion) -> Self {
        Self {
            path: path.to_owned(),
            version,
        }
    }

    /// Takes the program at this absolute path.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`] if it cannot be executed, [`Error::VmmStart`]
    /// if it does not answer like QEMU, [`Error::Unsupported`] if it is too old.
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
        if version < QemuVersion::OLDEST {
            return Err(Error::Unsupported(format!(
                "{} is QEMU {version}; {} or newer is needed; {REMEDY}",
                path.display(),
                QemuVersion::OLDEST
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
    pub const fn version(&self) -> QemuVersion {
        self.version
    }

    /// Whether it was built with the machines and devices this driver uses.
    pub(crate) fn check_devices(&self) -> Result<(), Error> {
        let machine = if cfg!(target_arch = "aarch64") {
            "virt"
        } else {
            "microvm"
        };
        for (question, wanted) in [
            ("-machine", machine),
            ("-device", "vhost-user-vsock-device"),
        ] {
            let answer = ask(&self.path, &[question, "help"])?;
            let there = answer
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .any(|word| word == wanted);
            if !there {
                return Err(Error::Unsupported(format!(
                    "{} was built without {wanted}",
                    self.path.display()
                )));
            }
        }
        Ok(())
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(answer: &str) -> Option<QemuVersion> {
    let rest = first_line(answer).strip_prefix("QEMU emulator version ")?;
    let digits = rest.split([' ', '(', '-']).next()?;
    let mut numbers = digits.split('.').map(str::parse);
    Some(QemuVersion {
        major: numbers.next()?.ok()?,
        minor: numbers.next()?.ok()?,
        micro: numbers.next().and_then(Result::ok).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_write_them() {
        for (text, wanted) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nC",
                "7.2.22",
            ),
            ("QEMU emulator version 10.0.0", "10.0.0"),
            ("QEMU emulator version 9.1.50-rc1 (v9)", "9.1.50"),
            ("QEMU emulator version 8.2", "8.2.0"),
        ] {
            assert_eq!(
                parse_version(text).map(|v| v.to_string()).as_deref(),
                Some(wanted)
            );
        }
        for text in ["", "bash 5.2", "QEMU emulator version x.y"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_missing_program_names_the_package() {
        let error = QemuBinary::find(OsStr::new("/nonexistent:relative")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("qemu-system-") && text.contains("install"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_is_no_qemu_is_refused() {
        let error = QemuBinary::at(Path::new("/bin/true")).unwrap_err();
        assert!(error.to_string().contains("version"), "{error}");
    }
}
