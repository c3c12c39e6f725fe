//! What became of a run: the object that `run --json` prints.

use std::path::PathBuf;

use microagent_protocol::{
    Backend, CapturedOutput, EndCause, ExitStatus, NetworkMode, State, Timestamp,
    supervisor::ErrorReport,
};
use serde::{Deserialize, Serialize};

use crate::options::Resources;

/// The image that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// As it was asked for, in full.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// What it is built for, such as `linux/amd64`.
    pub platform: String,
}

/// The kernel that booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Its identifier in the kernel store.
    pub id: String,
    /// Its release (`uname -r`).
    pub release: String,
    /// The SHA-256 of its image, in hexadecimal.
    pub sha256: String,
}

/// A part of a run and how long it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `image`, `kernel`, `workspace`, `launch` (to the VMM's start), `boot` (to the guest's
    /// readiness), `setup`, `command`, `shutdown` or `total`.
    pub name: String,
    /// Milliseconds.
    pub ms: u64,
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunResult {
    /// The workspace's name.
    pub workspace: String,
    /// Where the state is.
    pub state_dir: PathBuf,
    /// The image that ran.
    pub image: ImageInfo,
    /// The kernel that booted.
    pub kernel: KernelInfo,
    /// What ran the machine.
    pub backend: Option<Backend>,
    /// What the machine was given.
    pub resources: Resources,
    /// How it was connected.
    pub network: NetworkMode,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// When the command was started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub exited_at: Option<Timestamp>,
    /// How it ended, if it was seen to.
    pub exit: Option<ExitStatus>,
    /// The code for shells: the command's own, 128 + the signal, 124 when the time was up, 126
    /// and 127 when it could not be run, 125 when its end was not seen.
    pub exit_code: u8,
    /// How often the guest's kernel killed a process for lack of memory meanwhile.
    pub oom_kills: u64,
    /// The kept part of its standard output.
    pub stdout: CapturedOutput,
    /// The kept part of its standard error.
    pub stderr: CapturedOutput,
    /// What took how long, in order.
    pub phases: Vec<Phase>,
    /// The workspace's last state.
    pub final_state: State,
    /// Why the machine ended.
    pub end_cause: EndCause,
    /// Whether the workspace is still there.
    pub kept: bool,
    /// What went wrong, where the exit code alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

impl RunResult {
    /// Whether the command ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Some(ExitStatus::Exited { code: 0 }) && self.exit_code == 0
    }
}

/// The exit code when the time was up.
pub const EXIT_TIMED_OUT: u8 = 124;

/// The exit code when microagent itself failed.
pub const EXIT_FAILED: u8 = 125;

/// The code for shells of a run that ended so.
pub(crate) fn exit_code(exit: Option<&ExitStatus>, cause: EndCause) -> u8 {
    match (cause, exit) {
        (EndCause::TimedOut, _) => EXIT_TIMED_OUT,
        (_, Some(exit)) => exit.code(),
        // SIGKILL is what a container user sees when the whole thing is torn down.
        (EndCause::Killed | EndCause::OutOfMemory, None) => 137,
        (_, None) => EXIT_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_runs() {
        let exited = ExitStatus::Exited { code: 7 };
        assert_eq!(exit_code(Some(&exited), EndCause::WorkloadFinished), 7);
        assert_eq!(exit_code(Some(&exited), EndCause::TimedOut), 124);
        assert_eq!(exit_code(None, EndCause::Killed), 137);
        assert_eq!(exit_code(None, EndCause::VmmDied), 125);
        assert_eq!(exit_code(None, EndCause::GuestPanicked), 125);
    }
}
