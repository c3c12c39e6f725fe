//! Programs of the host: found by name, and asked about themselves with a deadline.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    Error,
    process::{printable, readable_within},
};

/// How long it may take to answer a question about itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 1024 * 1024;

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
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match readable_within(std::os::fd::AsFd::as_fd(&output), left) {
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
