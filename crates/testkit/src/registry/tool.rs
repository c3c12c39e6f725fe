//! Programs of the host that tests need.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a tool to its end and returns its standard output; a failure shows its standard error.
///
/// # Errors
/// When the tool is missing (names the Debian `package` that has it) or fails.
pub fn run_tool(package: &str, command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| missing(command, package))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

pub(super) fn missing(command: &Command, package: &str) -> String {
    format!(
        "cannot run `{}`: install the Debian package `{package}`",
        command.get_program().to_string_lossy()
    )
}
