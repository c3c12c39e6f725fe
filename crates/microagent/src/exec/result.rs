//! What became of a command or a line.

use std::time::Duration;

use microagent_protocol::{
    CapturedOutput, ExitStatus, LineReport, ShellFate, ShellOrigin, StartFailure, Timestamp,
    supervisor::{ErrorKind, ErrorReport},
};
use serde::{Deserialize, Serialize};

use super::{Target, attend::Attended};
use crate::{
    error::{Error, Result},
    result::{EXIT_FAILED, EXIT_TIMED_OUT, start_failure_kind},
};

/// What became of a command in a workspace: the object that `exec --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecResult {
    /// The workspace's name.
    pub workspace: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When its end was seen.
    pub exited_at: Option<Timestamp>,
    /// How it ended, if it was seen to.
    pub exit: Option<ExitStatus>,
    /// The code for shells: the command's own, 128 + the signal, 124 when the time was up, 126
    /// and 127 when it could not be run, 125 when its end was not seen.
    pub exit_code: u8,
    /// Whether the time was up.
    pub timed_out: bool,
    /// How often the guest's kernel killed a process for lack of memory meanwhile.
    pub oom_kills: u64,
    /// The kept part of its standard output.
    pub stdout: CapturedOutput,
    /// The kept part of its standard error.
    pub stderr: CapturedOutput,
    /// What went wrong, where the exit code alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// What became of a line: the object that `connect --send --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LineResult {
    /// The workspace's name.
    pub workspace: String,
    /// The line.
    pub line: String,
    /// Which shell took it.
    pub shell: Option<ShellOrigin>,
    /// What became of that shell, if it was seen.
    pub shell_after: Option<ShellFate>,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When its end was seen.
    pub exited_at: Option<Timestamp>,
    /// How it ended, if it was seen to: with the shell's `$?`, or as the shell did.
    pub exit: Option<ExitStatus>,
    /// The code for shells, as in [`ExecResult::exit_code`].
    pub exit_code: u8,
    /// Whether the time was up.
    pub timed_out: bool,
    /// How often the guest's kernel killed a process for lack of memory meanwhile.
    pub oom_kills: u64,
    /// The kept part of its standard output.
    pub stdout: CapturedOutput,
    /// The kept part of its standard error.
    pub stderr: CapturedOutput,
    /// What went wrong, where the exit code alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// Why an interactive shell was over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellEnd {
    /// It was let go of, and heard a hang-up.
    Detached,
    /// It ended.
    Ended(Box<ExecResult>),
}

/// Why a look at the serial console was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialEnd {
    /// It was let go of.
    Detached,
    /// The machine ended, or the console was read too slowly.
    MachineEnded,
}

/// What was seen of a session, from which both kinds of result are made.
pub(super) struct Facts<'a> {
    pub(super) target: &'a Target,
    pub(super) attended: Attended,
    /// The time it was given.
    pub(super) limit: Option<Duration>,
    pub(super) stdout: CapturedOutput,
    pub(super) stderr: CapturedOutput,
}

impl Facts<'_> {
    pub(super) fn detached(&self) -> bool {
        self.attended.detached
    }

    pub(super) fn exec(self, command: Vec<String>) -> ExecResult {
        let error = self.error("command");
        let exit_code = self.exit_code();
        let Attended {
            started_at,
            exited_at,
            report,
            timed_out,
            ..
        } = self.attended;
        ExecResult {
            workspace: self.target.name.clone(),
            command,
            started_at,
            exited_at,
            exit_code,
            timed_out,
            oom_kills: report.as_ref().map_or(0, |report| report.exit.oom_kills),
            exit: report.map(|report| report.exit.status),
            stdout: self.stdout,
            stderr: self.stderr,
            error,
        }
    }

    /// # Errors
    /// When the guest had no shell to spare: that is no result of a line.
    pub(super) fn line(self, line: String) -> Result<LineResult> {
        if let Some(LineReport { exit, .. }) = &self.attended.report
            && let ExitStatus::FailedToStart {
                reason: StartFailure::Guest,
                message,
            } = &exit.status
        {
            let report = not_started("line", StartFailure::Guest, message);
            return Err(Error::Supervisor(Box::new(report)));
        }
        let error = self.error("line");
        let exit_code = self.exit_code();
        let Attended {
            started_at,
            exited_at,
            report,
            timed_out,
            shell,
            ..
        } = self.attended;
        Ok(LineResult {
            workspace: self.target.name.clone(),
            line,
            shell,
            shell_after: report.as_ref().and_then(|report| report.shell),
            started_at,
            exited_at,
            exit_code,
            timed_out,
            oom_kills: report.as_ref().map_or(0, |report| report.exit.oom_kills),
            exit: report.map(|report| report.exit.status),
            stdout: self.stdout,
            stderr: self.stderr,
            error,
        })
    }

    fn exit_code(&self) -> u8 {
        match &self.attended.report {
            _ if self.attended.timed_out => EXIT_TIMED_OUT,
            Some(report) => report.exit.status.code(),
            None => EXIT_FAILED,
        }
    }

    /// What the exit code alone does not say of a `what`.
    fn error(&self, what: &str) -> Option<ErrorReport> {
        let name = &self.target.name;
        let report = match &self.attended.report {
            _ if self.attended.detached => ErrorReport::new(
                ErrorKind::Permanent,
                format!("The {what} was let go of before it ended."),
            ),
            seen if self.attended.timed_out => self.out_of_time(what, seen.as_ref()),
            Some(LineReport { exit, .. }) => match &exit.status {
                ExitStatus::FailedToStart { reason, message } => not_started(what, *reason, message),
                ExitStatus::Signaled { signal: 9 } if exit.oom_kills > 0 => {
                    ErrorReport::new(ErrorKind::Permanent, "The guest ran out of memory.")
                        .remedy("Give the workspace more memory.")
                }
                _ => return None,
            },
            None => ErrorReport::new(
                ErrorKind::Permanent,
                format!(
                    "The connection to {name} ended before the {what} did; whether it was completed is not known."
                ),
            )
            .remedy(format!("`microagent status {name}` says how the workspace is.")),
        };
        Some(report)
    }

    fn out_of_time(&self, what: &str, seen: Option<&LineReport>) -> ErrorReport {
        let limit = self.limit.map(humantime::format_duration);
        let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
        let outcome = match seen.map(|report| report.shell) {
            Some(Some(ShellFate::Kept)) => "it was interrupted; the shell takes the next line",
            Some(Some(ShellFate::Ended | ShellFate::Killed)) => {
                "it was interrupted, and the shell was ended with it"
            }
            Some(None) => "it was ended",
            None => "it was let go of; whether it ended is not known",
        };
        ErrorReport::new(
            ErrorKind::Permanent,
            format!("The time limit{limit} was over before the {what} was, so {outcome}."),
        )
        .remedy("Give it more time with --timeout.")
    }
}

fn not_started(what: &str, reason: StartFailure, message: &str) -> ErrorReport {
    let message = message.trim_end_matches('.');
    ErrorReport::new(
        start_failure_kind(reason),
        format!("The {what} could not be started: {message}."),
    )
}
