//! Running programs and showing what was run.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, bail};

/// The top of the checkout.
pub(crate) fn root() -> &'static Path {
    // This package lies directly under the top.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The build directory, which also keeps what is worth keeping between runs.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command at the top of the checkout.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![
        Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    ];
    for word in command.get_args() {
        let word = word.to_string_lossy();
        let plain = word
            .chars()
            .all(|c| c.is_alphanumeric() || "-_=./:,+@%".contains(c));
        words.push(if plain && !word.is_empty() {
            word.into_owned()
        } else {
            format!("'{word}'")
        });
    }
    words.join(" ")
}

/// Processor time of the children that have ended, and of theirs, in seconds.
pub(crate) fn children_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read our own times")?;
    // Behind the name, which may have spaces: `cutime` and `cstime` are the fields 16 and 17, in hundredths.
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(13).take(2);
    let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Shows the command, runs it with our streams, and fails if it does.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command and gives its output, which it fails with if the command does.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Runs the command, which must succeed before the deadline, at which it is killed.
pub(crate) fn run_within(command: &mut Command, deadline: Duration) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let mut pipe = child.stderr.take().context("no standard error")?;
    let (sender, ended) = mpsc::channel();
    // The pipe ends with the program: waiting for that costs no polling, which would be measured, too.
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let read = pipe.read_to_end(&mut said).map(|_| said);
        // Nobody listens any more after the deadline.
        let _ = sender.send(read);
    });
    let Ok(said) = ended.recv_timeout(deadline) else {
        child.kill()?;
        child.wait()?;
        bail!(
            "`{}` did not end within {deadline:?} and was killed",
            shown(command)
        );
    };
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "`{}` failed: {status}\n{}",
            shown(command),
            String::from_utf8_lossy(&said?)
        );
    }
    Ok(())
}

/// Where a program is on the `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps some administrators' programs out of an ordinary user's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_what_does_not_end() {
        let said = |script: &str, millis| {
            run_within(
                Command::new("sh").args(["-c", script]),
                Duration::from_millis(millis),
            )
            .map_err(|error| error.to_string())
        };
        assert_eq!(said("exit 0", 60_000), Ok(()));
        let failed = said("echo why >&2; exit 3", 60_000).unwrap_err();
        assert!(
            failed.contains("status: 3") && failed.contains("why"),
            "{failed}"
        );
        let late = said("exec sleep 60", 50).unwrap_err();
        assert!(
            late.contains("sleep 60") && late.contains("was killed"),
            "{late}"
        );
    }
}
