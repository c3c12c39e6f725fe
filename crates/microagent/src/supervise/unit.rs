//! The systemd user unit that keeps a workspace up without anybody logged in.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use microagent_host::fs::Private;
use microagent_protocol::WorkspaceName;
use serde::Serialize;

use crate::error::{IoContext as _, Result};

/// The most time `systemctl` gets for one request; starting a workspace takes no part of it.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(30);

/// A systemd user unit that runs `supervise` for a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperviseUnit {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables it needs beside those that the user's systemd gives it.
    pub environment: Vec<(String, String)>,
}

/// What became of a unit that was installed or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnitReport {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The unit's name.
    pub unit: String,
    /// Its file.
    pub path: PathBuf,
    /// Whether the file was written or removed; false if there was none to remove.
    pub changed: bool,
    /// Whether systemd took notice.
    pub registered: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to run by hand where it did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

impl SuperviseUnit {
    /// The name of the unit of `workspace`.
    #[must_use]
    pub fn file_name(workspace: &WorkspaceName) -> String {
        format!("microagent-supervise-{workspace}.service")
    }

    /// The unit file.
    ///
    /// ```
    /// use microagent::SuperviseUnit;
    ///
    /// let unit = SuperviseUnit {
    ///     workspace: "web".parse()?,
    ///     program: "/usr/local/bin/microagent".into(),
    ///     arguments: vec!["supervise".into(), "web".into()],
    ///     environment: Vec::new(),
    /// };
    /// assert!(unit.text().contains("ExecStart=\"/usr/local/bin/microagent\" \"supervise\" \"web\"\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn text(&self) -> String {
        let words: Vec<String> = [self.program.to_string_lossy().into_owned()]
            .into_iter()
            .chain(self.arguments.iter().cloned())
            .map(|word| quoted(&word, true))
            .collect();
        let environment: String = self
            .environment
            .iter()
            .map(|(name, value)| {
                format!(
                    "Environment={}\n",
                    quoted(&format!("{name}={value}"), false)
                )
            })
            .collect();
        format!(
            "# Written by `microagent supervise --install`; removed by `--uninstall`.\n\
             [Unit]\n\
             Description=microagent workspace {workspace}\n\
             \n\
             [Service]\n\
             Type=exec\n\
             ExecStart={command}\n\
             {environment}\
             # It restarts the workspace by its own policy; this is for itself.\n\
             Restart=on-failure\n\
             RestartSec=5\n\
             # It halts the workspace when it is told to end; nothing else is to be signalled then.\n\
             KillMode=mixed\n\
             TimeoutStopSec=60\n\
             \n\
             [Install]\n\
             WantedBy=default.target\n",
            workspace = self.workspace,
            command = words.join(" "),
        )
    }

    /// Writes the unit into `directory` and has systemd start it, now and whenever the user's
    /// systemd starts. The file is there afterwards whether or not systemd could be reached.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be written.
    pub fn install(&self, directory: &Path, systemctl: &Path) -> Result<UnitReport> {
        fs::create_dir_all(directory).context("create", directory)?;
        let unit = Self::file_name(&self.workspace);
        let path = directory.join(&unit);
        let temporary = directory.join(format!(".{unit}.new"));
        let mut file = fs::File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .private()
            .open(&temporary)
            .context("create", &temporary)?;
        file.write_all(self.text().as_bytes())
            .and_then(|()| file.sync_all())
            .context("write", &temporary)?;
        fs::rename(&temporary, &path).context("rename into place", &path)?;
        let requests: [&[&str]; 2] = [&["daemon-reload"], &["enable", "--now", &unit]];
        Ok(report(&self.workspace, path, true, systemctl, &requests))
    }

    /// Has systemd stop the unit of `workspace`, and removes it from `directory`. One that is not
    /// there is no error.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be removed.
    pub fn uninstall(
        workspace: &WorkspaceName,
        directory: &Path,
        systemctl: &Path,
    ) -> Result<UnitReport> {
        let unit = Self::file_name(workspace);
        let path = directory.join(&unit);
        // While the file is there, so that systemd knows what is meant.
        let mut told = report(
            workspace,
            path.clone(),
            false,
            systemctl,
            &[&["disable", "--now", &unit]],
        );
        told.changed = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error).context("remove", &path),
        };
        if !told.changed {
            // There was nothing to tell systemd about.
            (told.reason, told.commands) = (None, Vec::new());
        } else if told.registered {
            let requests: [&[&str]; 1] = [&["daemon-reload"]];
            told = report(workspace, path, true, systemctl, &requests);
        }
        Ok(told)
    }
}

fn report(
    workspace: &WorkspaceName,
    path: PathBuf,
    changed: bool,
    systemctl: &Path,
    requests: &[&[&str]],
) -> UnitReport {
    let failed = requests
        .iter()
        .enumerate()
        .find_map(|(index, request)| Some((index, ask(systemctl, request).err()?)));
    let commands = failed.iter().flat_map(|(index, _)| &requests[*index..]);
    UnitReport {
        workspace: workspace.clone(),
        unit: SuperviseUnit::file_name(workspace),
        path,
        changed,
        registered: failed.is_none(),
        commands: commands
            .map(|request| format!("systemctl --user {}", request.join(" ")))
            .collect(),
        reason: failed.map(|(_, reason)| reason),
    }
}

/// Asks the user's systemd for something; the reason why it was not done, else.
fn ask(systemctl: &Path, request: &[&str]) -> Result<(), String> {
    let mut child = Command::new(systemctl)
        .arg("--user")
        .args(request)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} cannot be run: {error}", systemctl.display()))?;
    let deadline = Instant::now() + SYSTEMCTL_TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                // It is of no use any more; that it is gone already is fine.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} did not end", systemctl.display()));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        use io::Read as _;
        // What it managed to say is all there is to tell.
        let _ = stderr.take(4096).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words);
    let last = words.lines().rfind(|line| !line.trim().is_empty());
    Err(match last {
        Some(line) => format!("systemctl: {}", line.trim()),
        None => format!("systemctl ended with {status}"),
    })
}

/// One word for systemd: in quotes, with what it would replace doubled. Dollars mean something in
/// commands alone.
fn quoted(word: &str, command: bool) -> String {
    let mut quoted = String::from("\"");
    for character in word.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '%' => quoted.push_str("%%"),
            '$' if command => quoted.push_str("$$"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> SuperviseUnit {
        SuperviseUnit {
            workspace: "web".parse().unwrap(),
            program: "/opt/my tools/microagent".into(),
            arguments: vec![
                "--state-dir".into(),
                "/a%b$c\"d\\e".into(),
                "supervise".into(),
                "web".into(),
            ],
            environment: vec![("PATH".into(), "/x:/y z$".into())],
        }
    }

    #[test]
    fn words_reach_the_program_as_they_are() {
        let text = unit().text();
        assert!(
            text.contains(
                r#"ExecStart="/opt/my tools/microagent" "--state-dir" "/a%%b$$c\"d\\e" "supervise" "web""#
            ),
            "{text}"
        );
        assert!(text.contains("Environment=\"PATH=/x:/y z$\"\n"), "{text}");
        assert!(text.ends_with("WantedBy=default.target\n"), "{text}");
    }

    /// A stand-in for systemctl that notes what it was asked and ends as told.
    fn systemctl(directory: &Path, end: &str) -> PathBuf {
        let path = directory.join("systemctl");
        let log = directory.join("log");
        let script = format!("#!/bin/sh\necho \"$@\" >> '{}'\n{end}\n", log.display());
        // Written by another process: were it open in this one, a child that another test starts
        // at that instant would keep it busy.
        let written = Command::new("/bin/sh")
            .args([
                "-c",
                "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"",
                "sh",
                &script,
            ])
            .arg(&path)
            .status();
        assert!(written.unwrap().success());
        path
    }

    #[test]
    fn units_are_written_registered_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let systemctl = systemctl(base.path(), "exit 0");
        let directory = base.path().join("systemd/user");
        let report = unit().install(&directory, &systemctl).unwrap();
        assert!(report.changed && report.registered && report.commands.is_empty());
        assert_eq!(report.unit, "microagent-supervise-web.service");
        assert_eq!(fs::read_to_string(&report.path).unwrap(), unit().text());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);

        let name = "web".parse().unwrap();
        let report = SuperviseUnit::uninstall(&name, &directory, &systemctl).unwrap();
        assert!(report.changed && report.registered && !report.path.exists());
        let log = fs::read_to_string(base.path().join("log")).unwrap();
        assert_eq!(
            log,
            "--user daemon-reload\n--user enable --now microagent-supervise-web.service\n\
             --user disable --now microagent-supervise-web.service\n--user daemon-reload\n"
        );
        let report = SuperviseUnit::uninstall(&name, &directory, &systemctl).unwrap();
        assert!(!report.changed && report.commands.is_empty());
    }

    #[test]
    fn without_systemd_the_file_is_there_and_the_rest_is_told() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("user");
        let missing = base.path().join("none");
        let report = unit().install(&directory, &missing).unwrap();
        assert!(report.changed && !report.registered && report.path.is_file());
        assert_eq!(
            report.commands,
            [
                "systemctl --user daemon-reload",
                "systemctl --user enable --now microagent-supervise-web.service"
            ]
        );
        assert!(report.reason.unwrap().contains("none"));

        let failing = systemctl(base.path(), "echo 'Failed to connect to bus' >&2; exit 1");
        let report = unit().install(&directory, &failing).unwrap();
        assert_eq!(
            report.reason.unwrap(),
            "systemctl: Failed to connect to bus"
        );
        let name = "web".parse().unwrap();
        let report = SuperviseUnit::uninstall(&name, &directory, &failing).unwrap();
        assert!(report.changed && !report.registered && !report.path.exists());
        assert_eq!(
            report.commands,
            ["systemctl --user disable --now microagent-supervise-web.service"]
        );
    }
}
