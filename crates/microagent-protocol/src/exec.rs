//! Running one process in the guest: what is asked for, and how it ended.
//!
//! A session is one stream. It opens with a [`FrameKind::Header`] frame
//! holding a [`crate::guest::SessionRequest`] and is answered by one holding a
//! [`crate::guest::SessionReply`]; then data frames flow until
//! [`FrameKind::Exit`]. The supervisor relays sessions unchanged, so a client of
//! the supervisor and the supervisor itself speak the same frames.
//!
//! [`FrameKind::Header`]: crate::FrameKind::Header
//! [`FrameKind::Exit`]: crate::FrameKind::Exit

use serde::{Deserialize, Serialize};

/// One environment variable, written `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("pattern" = "^[^=]+=")))]
#[serde(try_from = "String", into = "String")]
pub struct EnvVar {
    name: String,
    value: String,
}

impl EnvVar {
    /// A variable from its two parts.
    ///
    /// # Errors
    /// [`InvalidEnvVar`] if the name is empty or has `=`, or either part has a NUL byte.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Result<Self, InvalidEnvVar> {
        let (name, value) = (name.into(), value.into());
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(InvalidEnvVar { input: name });
        }
        Ok(Self { name, value })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// A text that is not `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not an environment variable; write NAME=VALUE, with no NUL byte and a name that is not empty"
)]
pub struct InvalidEnvVar {
    input: String,
}

impl std::str::FromStr for EnvVar {
    type Err = InvalidEnvVar;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let (name, value) = input.split_once('=').ok_or_else(|| InvalidEnvVar {
            input: input.to_owned(),
        })?;
        Self::new(name, value)
    }
}

impl TryFrom<String> for EnvVar {
    type Error = InvalidEnvVar;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        input.parse()
    }
}

impl From<EnvVar> for String {
    fn from(var: EnvVar) -> Self {
        format!("{}={}", var.name, var.value)
    }
}

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TtySize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl TtySize {
    /// As the payload of a resize frame.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.rows.to_be_bytes(), self.cols.to_be_bytes());
        [a, b, c, d]
    }

    /// From the payload of a resize frame.
    #[must_use]
    pub fn from_bytes(payload: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *<&[u8; 4]>::try_from(payload).ok()?;
        Some(Self {
            rows: u16::from_be_bytes([a, b]),
            cols: u16::from_be_bytes([c, d]),
        })
    }
}

/// What a process is to the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExecRole {
    /// The workload: its end ends the machine, and a halt sends it the stop signal.
    Workload,
    /// A setup command, run before the workload.
    Setup,
    /// Any other command.
    Command,
}

/// One process to run in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExecRequest {
    /// What it is to the workspace.
    pub role: ExecRole,
    /// The program and its arguments. The program is looked up in the `PATH`
    /// of `env` unless it has a slash.
    pub argv: Vec<String>,
    /// The whole environment. The agent adds `HOME` (from the guest's passwd),
    /// `PATH`, `HOSTNAME` and, with a terminal, `TERM` where they are missing.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Working directory, absolute; created if missing. `/` by default.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group`, `uid:gid` and mixtures, looked up in the
    /// guest's own passwd and group files. Root by default.
    #[serde(default)]
    pub user: Option<String>,
    /// Give it a terminal of this size; standard error then is the terminal too.
    #[serde(default)]
    pub tty: Option<TtySize>,
    /// Whether standard input is streamed; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// The Linux signal number that asks it to end; 15 (`SIGTERM`) by default.
    #[serde(default)]
    pub stop_signal: Option<u8>,
}

/// Why a process never ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StartFailure {
    /// The program is not there.
    NotFound,
    /// The program is there but cannot be executed.
    NotExecutable,
    /// The user or group is not in the guest's files.
    UnknownUser,
    /// The working directory cannot be entered or made.
    BadWorkdir,
    /// The request itself is wrong.
    Invalid,
    /// The guest could not do it (out of memory or processes, for example).
    Guest,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited by itself.
    Exited {
        /// Its exit code.
        code: u8,
    },
    /// A signal ended it.
    Signaled {
        /// The Linux signal number.
        signal: u8,
    },
    /// It never ran.
    FailedToStart {
        /// Why.
        reason: StartFailure,
        /// The same for a person, naming the program, user or directory.
        message: String,
    },
}

impl ExitStatus {
    /// The exit code a shell or container user expects: the process's own,
    /// 128 + the signal, 127 for not found, 126 for anything else that kept it
    /// from running.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal } => 128_u8.saturating_add(*signal),
            Self::FailedToStart {
                reason: StartFailure::NotFound,
                ..
            } => 127,
            Self::FailedToStart { .. } => 126,
        }
    }
}

/// The payload of an exit frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitReport {
    /// How it ended.
    #[serde(flatten)]
    pub status: ExitStatus,
    /// How often the guest's kernel killed a process for lack of memory while this one ran.
    #[serde(default)]
    pub oom_kills: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(ExitStatus::Exited { code: 42 }.code(), 42);
        assert_eq!(ExitStatus::Signaled { signal: 9 }.code(), 137);
        let failed = |reason| {
            ExitStatus::FailedToStart {
                reason,
                message: String::new(),
            }
            .code()
        };
        assert_eq!(failed(StartFailure::NotFound), 127);
        assert_eq!(failed(StartFailure::NotExecutable), 126);
    }

    #[test]
    fn variables_keep_everything_after_the_first_equals_sign() {
        let var: EnvVar = "A=b=c".parse().unwrap();
        assert_eq!((var.name(), var.value()), ("A", "b=c"));
        for bad in ["", "A", "=x", "A\0=x", "A=\0"] {
            assert!(bad.parse::<EnvVar>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_survive_the_wire() {
        let size = TtySize {
            rows: 24,
            cols: 300,
        };
        assert_eq!(TtySize::from_bytes(&size.to_bytes()), Some(size));
        assert_eq!(TtySize::from_bytes(&[1, 2, 3]), None);
    }

    #[test]
    fn an_exit_report_is_flat_json() {
        let report = ExitReport {
            status: ExitStatus::Exited { code: 1 },
            oom_kills: 0,
        };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(json, r#"{"status":"exited","code":1,"oom_kills":0}"#);
        assert_eq!(serde_json::from_str::<ExitReport>(&json).unwrap(), report);
    }
}
