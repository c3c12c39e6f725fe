//! What to run in a workspace, and how.

use std::time::Duration;

use microagent_protocol::{
    TtySize,
    shell::{DEFAULT_SHELL, MAX_LINE},
};

use crate::{
    command::{check_user, check_workdir},
    error::{Error, Result},
    options::EnvChange,
};

/// A command to run in a workspace that runs.
///
/// Its environment, directory and user are the workspace's own, which are its image's unless it
/// was made with others.
///
/// ```
/// use microagent::ExecOptions;
///
/// let options = ExecOptions::new(["cargo", "test"])
///     .env("RUST_BACKTRACE", "1")
///     .workdir("/src");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ExecOptions {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<EnvChange>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) tty: Option<TtySize>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) ready_timeout: Option<Duration>,
}

impl ExecOptions {
    /// A program and its arguments. No shell is implied.
    pub fn new<I>(argv: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            workdir: None,
            user: None,
            tty: None,
            timeout: None,
            ready_timeout: None,
        }
    }

    /// Sets a variable, on top of the workspace's.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push(EnvChange::Set(name.into(), value.into()));
        self
    }

    /// Removes a variable of the workspace's.
    pub fn env_remove(mut self, name: impl Into<String>) -> Self {
        self.env.push(EnvChange::Remove(name.into()));
        self
    }

    /// The working directory; made if it is missing.
    pub fn workdir(mut self, directory: impl Into<String>) -> Self {
        self.workdir = Some(directory.into());
        self
    }

    /// The user: `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the command a terminal of this size. Its standard error is then the terminal too.
    pub fn tty(mut self, size: TtySize) -> Self {
        self.tty = Some(size);
        self
    }

    /// The most time the command may take from its start; then it gets `SIGTERM`, and soon
    /// after `SIGKILL`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long a workspace that is starting may take to be ready
    /// ([`crate::Timeouts::boot`] by default).
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = Some(timeout);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("the command", "it names no program"));
        }
        if self.argv.iter().any(|word| word.contains('\0')) {
            return Err(Error::invalid("the command", "it has a NUL byte"));
        }
        self.workdir.as_deref().map_or(Ok(()), check_workdir)?;
        self.user.as_deref().map_or(Ok(()), check_user)?;
        check_timeout(self.timeout)
    }
}

fn check_timeout(timeout: Option<Duration>) -> Result<()> {
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        let reason = "it is zero; leave it out for no limit";
        return Err(Error::invalid("--timeout", reason));
    }
    Ok(())
}

/// An interactive shell in a workspace that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ShellOptions {
    size: TtySize,
    shell: Option<String>,
    terminal: Option<String>,
}

impl ShellOptions {
    /// The workspace's shell, which is `/bin/sh` unless it was made with another one, on a terminal
    /// of this size.
    pub fn new(size: TtySize) -> Self {
        Self {
            size,
            shell: None,
            terminal: None,
        }
    }

    /// Another shell, looked up in the workspace's `PATH` unless it has a slash.
    pub fn shell(mut self, shell: impl Into<String>) -> Self {
        self.shell = Some(shell.into());
        self
    }

    /// What the terminal is: the value of `TERM`.
    pub fn terminal(mut self, kind: impl Into<String>) -> Self {
        self.terminal = Some(kind.into());
        self
    }

    /// As a command, in a workspace whose own shell is `own`.
    pub(super) fn into_exec(self, own: Option<&str>) -> ExecOptions {
        let shell = self.shell.as_deref().or(own).unwrap_or(DEFAULT_SHELL);
        let options = ExecOptions::new([shell]).tty(self.size);
        match self.terminal {
            Some(kind) => options.env("TERM", kind),
            None => options,
        }
    }
}

/// A line for the persistent shell of a workspace that runs.
///
/// All lines of one boot go to one shell: what one line sets (directory, variables, functions,
/// background jobs) is there for the next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct LineOptions {
    pub(crate) line: String,
    shell: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) ready_timeout: Option<Duration>,
}

impl LineOptions {
    /// How long a line may take unless told otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
    /// How long the shell may take to be ready for it unless told otherwise.
    pub const READY_TIMEOUT: Duration = Duration::from_secs(10);

    /// A line in the shell's language; may be several.
    pub fn new(line: impl Into<String>) -> Self {
        Self {
            line: line.into(),
            shell: None,
            timeout: Some(Self::TIMEOUT),
            ready_timeout: Some(Self::READY_TIMEOUT),
        }
    }

    /// The shell to start if none runs yet, instead of the workspace's: one that speaks the POSIX
    /// language.
    pub fn shell(mut self, shell: impl Into<String>) -> Self {
        self.shell = Some(shell.into());
        self
    }

    /// The shell to start in a workspace whose own shell is `own`.
    pub(super) fn program(&self, own: Option<&str>) -> String {
        let shell = self.shell.as_deref().or(own);
        shell.unwrap_or(DEFAULT_SHELL).to_owned()
    }

    /// The most time the line may take; `None` for any. Then it is interrupted.
    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the workspace may take to be ready, and the lines before this one to be over;
    /// `None` for any time.
    pub fn ready_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.ready_timeout = timeout;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.line.contains('\0') {
            return Err(Error::invalid("the line", "it has a NUL byte"));
        }
        if self.line.len() > MAX_LINE {
            let reason = format!(
                "it has {} bytes; a line may have {MAX_LINE}",
                self.line.len()
            );
            return Err(Error::invalid("the line", reason));
        }
        if self
            .shell
            .as_ref()
            .is_some_and(|shell| shell.is_empty() || shell.contains('\0'))
        {
            return Err(Error::invalid("--shell", "it names no program"));
        }
        check_timeout(self.timeout)
    }
}
