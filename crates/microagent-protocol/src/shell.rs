//! The workspace's persistent shell: one process a boot, fed one line at a time.
//!
//! A line is a session of its own (see [`crate::exec`]): it is opened by
//! [`crate::guest::SessionRequest::Shell`], its output comes as data frames, and a
//! [`LineReport`] in the exit frame ends it. What the line changed in the shell (its
//! directory, variables, functions, background jobs) is there for the next line. Lines
//! are run one after the other, in the order they came.
//!
//! A line's standard input is `/dev/null`. A signal frame interrupts the line, whatever
//! its number; 9 (`SIGKILL`) ends the shell.

use serde::{Deserialize, Serialize};

use crate::exec::{EnvVar, ExitReport};

/// The shell that is started unless another one is asked for.
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// The most bytes of a line.
pub const MAX_LINE: usize = 1024 * 1024;

/// One line for the persistent shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShellLine {
    /// What to run; may be several lines in the shell's language.
    pub line: String,
    /// How to start the shell if none runs yet.
    pub shell: ShellStart,
    /// How long the lines before it may take, in milliseconds; for ever by default.
    #[serde(default)]
    pub turn_limit_ms: Option<u64>,
}

/// How the persistent shell is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShellStart {
    /// The program: a shell that speaks the POSIX language and reads commands from its
    /// standard input when it is called with `-s`.
    pub program: String,
    /// Its environment, as in [`crate::ExecRequest::env`].
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Its first working directory, as in [`crate::ExecRequest::cwd`].
    #[serde(default)]
    pub cwd: Option<String>,
    /// Who it runs as, as in [`crate::ExecRequest::user`].
    #[serde(default)]
    pub user: Option<String>,
}

/// Which shell took a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ShellOrigin {
    /// The one that took the line before.
    Running,
    /// The first one of this boot.
    Started,
    /// A new one, because the one before had ended: what lines before had set is gone.
    Restarted,
}

/// What became of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ShellFate {
    /// It takes the next line.
    Kept,
    /// The line ended it (`exit`, for example); the next line starts a new one.
    Ended,
    /// It did not come back from an interrupted line and was killed with all it had
    /// started; the next line starts a new one.
    Killed,
}

/// The payload of an exit frame. Only a line has something to tell of a shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LineReport {
    /// How the line ended: with the shell's `$?`, or as the shell did if it ended with it.
    #[serde(flatten)]
    pub exit: ExitReport,
    /// What became of the shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<ShellFate>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::ExitStatus;

    #[test]
    fn the_report_of_a_process_is_that_of_a_line_without_a_shell() {
        let exit = ExitReport {
            status: ExitStatus::Exited { code: 3 },
            oom_kills: 1,
        };
        let plain = serde_json::to_string(&exit).unwrap();
        let line = LineReport { exit, shell: None };
        assert_eq!(serde_json::to_string(&line).unwrap(), plain);
        assert_eq!(serde_json::from_str::<LineReport>(&plain).unwrap(), line);
        let line = LineReport {
            shell: Some(ShellFate::Ended),
            ..line
        };
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(
            json,
            r#"{"status":"exited","code":3,"oom_kills":1,"shell":"ended"}"#
        );
        assert_eq!(serde_json::from_str::<LineReport>(&json).unwrap(), line);
    }
}
