//! Firecracker's `jailer`: found beside it or where it was named, and what it is told.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::FirecrackerBinary;
use crate::{
    Error, MachineSpec,
    confine::{
        MOST_FILES,
        jailer::{Jailer, own_user},
    },
    program::{Version, Wanted, find_program, is_executable},
};

const WANTED: Wanted = Wanted {
    program: "jailer",
    product: "jailer",
    greeting: "Jailer v",
    oldest: Version::new(1, 10, 0),
    remedy: "put the jailer of Firecracker's release beside it, name it in MICROAGENT_JAILER, or say MICROAGENT_JAILER=off",
};

/// What [`JailerBinary::find`] is told where none is to be used.
const OFF: &str = "off";

/// A jailer program that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailerBinary {
    path: PathBuf,
    version: Version,
}

impl JailerBinary {
    /// Takes the one at `named`, if one is named (`off`: none); else the one beside `firecracker`;
    /// else the first of a `PATH` value. Nobody but root can use one.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn find(
        named: Option<&Path>,
        firecracker: &FirecrackerBinary,
        search_path: &OsStr,
    ) -> Result<Option<Self>, Error> {
        if !rustix::process::geteuid().is_root() || named == Some(Path::new(OFF)) {
            return Ok(None);
        }
        let found = named
            .map(Path::to_owned)
            .or_else(|| beside(firecracker.path()))
            .or_else(|| find_program(OsStr::new(WANTED.program), search_path));
        found.map(|path| Self::at(&path)).transpose()
    }

    /// Takes the program at this absolute path.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`] if it cannot be executed, [`Error::VmmStart`] if it does not
    /// answer like a jailer, [`Error::Unsupported`] if it is too old.
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

    /// How it starts a Firecracker with these arguments; `id` is part of them for it.
    pub(super) fn starts(
        &self,
        firecracker: &FirecrackerBinary,
        spec: &MachineSpec,
        id: &str,
        arguments: &[OsString],
    ) -> Result<Jailer, Error> {
        let real = std::fs::canonicalize(firecracker.path()).map_err(|source| Error::Io {
            context: format!("find {}", firecracker.path().display()),
            source,
        })?;
        let name = real.file_name().unwrap_or_default();
        // It is this machine's alone, and in the jailer's sight there is nothing in it.
        let base = spec.runtime_dir.clone();
        let user = own_user().to_string();
        let mut words: Vec<OsString> = Vec::new();
        for (option, value) in [
            ("--id", OsStr::new(id)),
            ("--exec-file", real.as_os_str()),
            ("--uid", OsStr::new(&user)),
            ("--gid", OsStr::new(&user)),
            ("--chroot-base-dir", base.as_os_str()),
            (
                "--resource-limit",
                OsStr::new(&format!("no-file={MOST_FILES}")),
            ),
        ] {
            words.extend([option.into(), value.to_owned()]);
        }
        words.push("--".into());
        words.extend_from_slice(arguments);
        Ok(Jailer {
            program: self.path.clone(),
            arguments: words,
            root: base.join(name).join(id).join("root"),
            base,
        })
    }
}

/// `jailer` beside `firecracker`; a release has both with its version at the end of their names.
fn beside(firecracker: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(firecracker).ok()?;
    let name = real.file_name()?.to_str()?;
    let tail = name.strip_prefix("firecracker").unwrap_or_default();
    [tail, ""]
        .map(|tail| real.with_file_name(format!("{}{tail}", WANTED.program)))
        .into_iter()
        .find(|path| is_executable(path))
}
