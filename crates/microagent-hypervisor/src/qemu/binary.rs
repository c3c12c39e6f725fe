//! Which QEMU: found on a search path, its version asked for with a deadline.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    Error,
    program::{Version, Wanted, ask, find_program},
};

/// The system emulator for this host's own architecture.
const PROGRAM: &str = if cfg!(target_arch = "aarch64") {
    "qemu-system-aarch64"
} else {
    "qemu-system-x86_64"
};

/// What to install where it is missing.
pub(crate) const REMEDY: &str = if cfg!(target_arch = "aarch64") {
    "install QEMU, as root (Debian, Ubuntu: apt-get install qemu-system-arm; \
     Fedora: dnf install qemu-system-aarch64-core; Alpine: apk add qemu-system-aarch64)"
} else {
    "install QEMU, as root (Debian, Ubuntu: apt-get install qemu-system-x86; \
     Fedora: dnf install qemu-system-x86-core; Alpine: apk add qemu-system-x86_64)"
};

const WANTED: Wanted = Wanted {
    program: PROGRAM,
    product: "QEMU",
    greeting: "QEMU emulator version ",
    // memory-backend-memfd, microvm with ACPI, vhost-user-vsock with chardev descriptors.
    oldest: Version::new(6, 2, 0),
    remedy: REMEDY,
};

/// The oldest with network cards on a socket it inherits (`-netdev stream`).
pub(super) const STREAMS: Version = Version::new(7, 2, 0);

/// A QEMU program that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBinary {
    path: PathBuf,
    version: Version,
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
        find_program(OsStr::new(PROGRAM), search_path).ok_or_else(|| WANTED.missing(search_path))
    }

    /// One that told its version before and has not changed since.
    pub(crate) fn known(path: &Path, version: Version) -> Self {
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
                WANTED.version(text).map(|v| v.to_string()).as_deref(),
                Some(wanted)
            );
        }
        for text in ["", "bash 5.2", "QEMU emulator version x.y"] {
            assert_eq!(WANTED.version(text), None, "{text}");
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
