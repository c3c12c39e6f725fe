//! Running programs and showing what was run.

use std::{
    fs::File,
    io::{Read as _, Write as _},
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

/// Where a command runs: before somebody's eyes, or beside other work.
pub(crate) enum Place {
    /// With our streams.
    Here,
    /// With what others leave of the processor; what it says goes to the file.
    Beside(File),
}

impl Place {
    pub(crate) fn say(&self, line: &str) -> anyhow::Result<()> {
        match self {
            Self::Here => println!("{line}"),
            Self::Beside(log) => writeln!(&*log, "{line}").context("cannot write the log")?,
        }
        Ok(())
    }

    /// Shows the command, runs it, and fails if it does.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let Self::Beside(log) = self else {
            return run(command);
        };
        self.say(&format!("$ {}", shown(command)))?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        if let Some(directory) = command.get_current_dir() {
            nice.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => nice.env(name, value),
                None => nice.env_remove(name),
            };
        }
        let status = nice
            .status()
            .with_context(|| format!("cannot start {}", shown(command)))?;
        if !status.success() {
            bail!("`{}` failed: {status}", shown(command));
        }
        Ok(())
    }
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
    use std::io::Seek as _;

    use super::*;

    #[test]
    fn what_runs_beside_is_nice_and_says_all_to_its_log() {
        let mut log = tempfile();
        let place = Place::Beside(log.try_clone().unwrap());
        let mut command = Command::new("sh");
        command
            .args(["-c", "nice; pwd; echo $WHAT >&2; exit $STATUS"])
            .current_dir("/usr")
            .env("WHAT", "said")
            .env("STATUS", "0");
        place.run(&mut command).unwrap();
        let failed = place.run(command.env("STATUS", "3")).unwrap_err();
        assert!(failed.to_string().contains("status: 3"), "{failed}");
        log.rewind().unwrap();
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(said.matches("\n19\n/usr\nsaid\n").count(), 2, "{said}");
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("microagent-xtask-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

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
