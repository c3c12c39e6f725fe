//! Credential helpers: programs named `docker-credential-NAME` that keep secrets in a keychain.
//!
//! One call is one process: a verb as argument, what it is about on standard input, the answer on
//! standard output, which is never shown. A helper may ask a person, so it has time, but not for ever.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use microagent_image::{Credential, Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The most bytes of an answer, and of what is shown when there is none.
const MAX_ANSWER: u64 = 256 << 10;
const MAX_SHOWN: usize = 400;
/// How often a helper that closed its output is looked at, until it ends.
const TICK: Duration = Duration::from_millis(5);

/// The words by which helpers say that they have nothing; the same in all of them.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that marks a secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// A helper that was found.
#[derive(Debug)]
pub(crate) struct Helper {
    name: String,
    program: PathBuf,
    limit: Duration,
}

#[derive(Deserialize)]
struct Answer {
    // Docker takes the names in any case.
    #[serde(rename = "Username", alias = "username")]
    username: String,
    #[serde(rename = "Secret", alias = "secret")]
    secret: Zeroizing<String>,
}

#[derive(Serialize)]
struct Kept<'k> {
    #[serde(rename = "ServerURL")]
    server: &'k str,
    #[serde(rename = "Username")]
    username: &'k str,
    #[serde(rename = "Secret")]
    secret: &'k str,
}

/// How a helper ended.
struct Ended {
    status: ExitStatus,
    stdout: Zeroizing<Vec<u8>>,
    stderr: Zeroizing<Vec<u8>>,
}

impl Helper {
    /// Finds `docker-credential-NAME` in the directories of `path`.
    pub(crate) fn find(name: &str, path: Option<&OsStr>, limit: Duration) -> Result<Self, String> {
        let good = !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !good {
            return Err(format!(
                "`{}` is no name of a credential helper; it is what follows `docker-credential-` in the program's name",
                shown(name.as_bytes())
            ));
        }
        let program = format!("docker-credential-{name}");
        path.into_iter()
            .flat_map(std::env::split_paths)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(&program))
            .find(|candidate| crate::config::is_executable(candidate))
            .map(|program| Self {
                name: name.to_owned(),
                program,
                limit,
            })
            .ok_or_else(|| {
                format!("the credential helper `{program}` is not on the PATH; install it, or remove its mention from the file")
            })
    }

    /// What it keeps for `server`.
    pub(crate) fn get(&self, server: &str) -> Result<Option<Credential>, String> {
        let ended = self.call("get", server.as_bytes())?;
        if !ended.status.success() {
            return match ended.has_none() {
                true => Ok(None),
                false => Err(self.failure("get", server, &ended, None)),
            };
        }
        let answer: Answer = serde_json::from_slice(&ended.stdout).map_err(|_| {
            format!(
                "the credential helper {} gave an answer that cannot be read; {}",
                self.name,
                self.by_hand("get", server)
            )
        })?;
        if answer.secret.is_empty() {
            return Ok(None);
        }
        let secret = Secret::from(answer.secret.as_str());
        Ok(Some(if answer.username == TOKEN_USER {
            Credential::Identity(secret)
        } else {
            Credential::Basic {
                username: answer.username,
                password: secret,
            }
        }))
    }

    /// Gives it something to keep.
    pub(crate) fn store(
        &self,
        server: &str,
        username: &str,
        secret: &Secret,
    ) -> Result<(), String> {
        let kept = Kept {
            server,
            username,
            secret: secret.expose(),
        };
        let input = Zeroizing::new(serde_json::to_vec(&kept).map_err(|error| error.to_string())?);
        let ended = self.call("store", &input)?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(self.failure("store", server, &ended, Some(secret))),
        }
    }

    /// Makes it forget; whether there was something.
    pub(crate) fn erase(&self, server: &str) -> Result<bool, String> {
        if self.get(server)?.is_none() {
            return Ok(false);
        }
        let ended = self.call("erase", server.as_bytes())?;
        match ended.status.success() || ended.has_none() {
            true => Ok(true),
            false => Err(self.failure("erase", server, &ended, None)),
        }
    }

    fn failure(&self, verb: &str, server: &str, ended: &Ended, secret: Option<&Secret>) -> String {
        let said = Zeroizing::new(String::from_utf8_lossy(&ended.stderr).into_owned());
        // Before it is made fit for a message: a secret may have more than one line.
        let said = match secret {
            Some(secret) => Zeroizing::new(said.replace(secret.expose(), "…")),
            None => said,
        };
        let said = shown(said.as_bytes());
        let how = match said.is_empty() {
            true => format!(
                "and said nothing on standard error; {}",
                self.by_hand(verb, server)
            ),
            false => format!("and said: {said}"),
        };
        format!(
            "the credential helper docker-credential-{} failed to {verb} ({}), {how}",
            self.name, ended.status
        )
    }

    /// How to hear what is not shown.
    fn by_hand(&self, verb: &str, server: &str) -> String {
        match verb {
            "store" => "its standard output is not shown, as it may hold secrets".to_owned(),
            _ => format!(
                "its standard output is not shown, as it may hold secrets: `echo {server} | docker-credential-{} {verb}` shows it to you",
                self.name
            ),
        }
    }

    fn call(&self, verb: &str, input: &[u8]) -> Result<Ended, String> {
        let deadline = Instant::now() + self.limit;
        let fault = |error: io::Error| {
            format!(
                "the credential helper {} cannot be run: {error}",
                self.program.display()
            )
        };
        let mut child = Killed(
            Command::new(&self.program)
                .arg(verb)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(fault)?,
        );
        let stdout = child.0.stdout.take().map(collect);
        let stderr = child.0.stderr.take().map(collect);
        if let Some(mut stdin) = child.0.stdin.take() {
            let input = Zeroizing::new(input.to_vec());
            // A helper that does not read its input says why on standard error.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let late = || {
            format!(
                "the credential helper docker-credential-{} did not answer within {}",
                self.name,
                humantime::format_duration(self.limit)
            )
        };
        let received = |stream: Option<Receiver<io::Result<Zeroizing<Vec<u8>>>>>| match stream {
            Some(stream) => {
                match stream.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(read) => read.map_err(fault),
                    Err(RecvTimeoutError::Timeout) => Err(late()),
                    Err(RecvTimeoutError::Disconnected) => Ok(Zeroizing::default()),
                }
            }
            None => Ok(Zeroizing::default()),
        };
        let (stdout, stderr) = (received(stdout)?, received(stderr)?);
        loop {
            if let Some(status) = child.0.try_wait().map_err(fault)? {
                return Ok(Ended {
                    status,
                    stdout,
                    stderr,
                });
            }
            if Instant::now() >= deadline {
                return Err(late());
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Ended {
    fn has_none(&self) -> bool {
        String::from_utf8_lossy(&self.stdout).trim() == NOT_FOUND
    }
}

/// A child that does not outlive the call.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Killing fails only if it ended already.
        if self.0.kill().is_ok() {
            let _ended = self.0.wait();
        }
    }
}

/// Reads a stream to its end, up to a bound, in a thread: another process may hold it open for ever.
fn collect(stream: impl Read + Send + 'static) -> Receiver<io::Result<Zeroizing<Vec<u8>>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        let read = stream.take(MAX_ANSWER).read_to_end(&mut bytes);
        // Nobody listens any more after the deadline.
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

/// Foreign text made fit for a message.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text
        .trim()
        .chars()
        .take(MAX_SHOWN)
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if text.trim().chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
