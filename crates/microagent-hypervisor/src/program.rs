//! Programs of the host: found by name, and asked about themselves with a deadline.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use microagent_host::process::readable_by;
use serde::{Deserialize, Serialize};

use crate::{Error, text::printable};

/// How long it may take to answer a question about itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 1024 * 1024;

/// A program's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch; 0 where none is told.
    pub patch: u32,
}

impl Version {
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// The numbers at the start of a text: `7.2.22 (Debian …)`, `1.17.0-dev`.
    fn parse(text: &str) -> Option<Self> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        Some(Self {
            major: numbers.next()??,
            minor: numbers.next()??,
            patch: numbers.next().flatten().unwrap_or(0),
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A program that is asked for its version before it is used.
pub(crate) struct Wanted {
    /// Its file's name.
    pub(crate) program: &'static str,
    /// What people call it.
    pub(crate) product: &'static str,
    /// What is before the version in its answer.
    pub(crate) greeting: &'static str,
    /// The oldest with everything that is asked of it.
    pub(crate) oldest: Version,
    /// What to do where it is missing or too old.
    pub(crate) remedy: &'static str,
}

impl Wanted {
    /// The version of the one at this absolute path.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`] if it cannot be executed, [`Error::VmmStart`] if it does not
    /// answer like it, [`Error::Unsupported`] if it is too old.
    pub(crate) fn at(&self, path: &Path) -> Result<Version, Error> {
        if !path.is_absolute() || !is_executable(path) {
            return Err(self.missing(path.as_os_str()));
        }
        let answer = ask(path, &["--version"])?;
        let version = self.version(&answer).ok_or_else(|| Error::VmmStart {
            program: path.to_owned(),
            reason: format!("it does not tell its version: {:?}", first_line(&answer)),
        })?;
        if version < self.oldest {
            return Err(Error::Unsupported(format!(
                "{} is {} {version}; {} or newer is needed; {}",
                path.display(),
                self.product,
                self.oldest,
                self.remedy
            )));
        }
        Ok(version)
    }

    /// That it was not found there.
    pub(crate) fn missing(&self, searched: &OsStr) -> Error {
        Error::ProgramMissing {
            program: self.program.to_owned(),
            searched: searched.to_string_lossy().into_owned(),
            remedy: self.remedy.to_owned(),
        }
    }

    pub(crate) fn version(&self, answer: &str) -> Option<Version> {
        first_line(answer)
            .strip_prefix(self.greeting)
            .and_then(Version::parse)
    }
}

/// Finds an executable file on a `PATH` value.
pub(crate) fn find_program(name: &OsStr, search_path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(search_path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

pub(crate) use microagent_host::fs::is_executable;

/// Runs it for its answer, at most [`ANSWER_BYTES`] of it, within [`ANSWER_LIMIT`].
pub(crate) fn ask(path: &Path, arguments: &[&str]) -> Result<String, Error> {
    let fail = |reason: String| Error::VmmStart {
        program: path.to_owned(),
        reason,
    };
    let (mut output, output_write) =
        std::io::pipe().map_err(|error| fail(format!("no pipe for its answer: {error}")))?;
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output_write)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    let deadline = std::time::Instant::now() + ANSWER_LIMIT;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    let outcome = loop {
        match readable_by(&output, deadline) {
            Ok(true) => {}
            Ok(false) => break Err(fail(format!("no answer within {ANSWER_LIMIT:?}"))),
            Err(error) => break Err(fail(error.to_string())),
        }
        match output.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) if answer.len() + n <= ANSWER_BYTES => answer.extend_from_slice(&buffer[..n]),
            Ok(_) => break Err(fail(format!("its answer is over {ANSWER_BYTES} bytes"))),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(fail(error.to_string())),
        }
    };
    // It closed its output or is of no use any more; an exit code adds nothing to the answer.
    if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
        tracing::debug!(%error, "a program that was asked a question could not be reaped");
    }
    outcome.map(|()| printable(&answer))
}

/// The first line of an answer.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
