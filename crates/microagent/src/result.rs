//! What became of a run: the object that `run --json` prints.

use std::path::PathBuf;

use microagent_protocol::{
    Backend, CapturedOutput, EndCause, ExitStatus, NetworkMode, PublishedPort, StartFailure, State,
    Timestamp,
    supervisor::{ErrorKind, ErrorReport},
};
use serde::{Deserialize, Serialize};

use crate::{artifacts::Artifact, profile::Resources};

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

/// A tag that stands for another image than when its registry was asked before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagMove {
    /// The digest that it stood for.
    pub from: String,
    /// The digest that it stands for now.
    pub to: String,
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
    /// readiness), `setup`, `command`, `shutdown`, `artifacts` or `total`.
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
    /// Set where its tag was found to have moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_moved: Option<TagMove>,
    /// The kernel that booted.
    pub kernel: KernelInfo,
    /// What ran the machine.
    pub backend: Option<Backend>,
    /// What the machine was given.
    pub resources: Resources,
    /// How it was connected.
    pub network: NetworkMode,
    /// The ports that led into it, each with the host's port that was bound.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
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
    /// The declared artifacts as they were at the end, in the order they were declared.
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
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

/// What kind of failure it is that a process never ran.
pub(crate) fn start_failure_kind(reason: StartFailure) -> ErrorKind {
    match reason {
        StartFailure::NotFound | StartFailure::UnknownUser => ErrorKind::NotFound,
        StartFailure::Guest => ErrorKind::Transient,
        StartFailure::NotExecutable | StartFailure::BadWorkdir | StartFailure::Invalid => {
            ErrorKind::Invalid
        }
    }
}

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

    #[test]
    fn the_json_form_is_a_promise() {
        use crate::artifacts::{ArtifactKind, ArtifactState};
        use microagent_protocol::{Mebibytes, output::OutputEncoding};
        use std::time::{Duration, SystemTime};
        let at = |ms| Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        let captured = |data: &str| CapturedOutput {
            encoding: OutputEncoding::Utf8,
            data: data.to_owned(),
            total_bytes: data.len() as u64,
            truncated: false,
        };
        let result = RunResult {
            workspace: "run-brave-otter-4f9c".into(),
            state_dir: "/state".into(),
            image: ImageInfo {
                reference: "docker.io/library/debian:12".into(),
                digest: "sha256:00".into(),
                platform: "linux/amd64".into(),
            },
            tag_moved: Some(TagMove {
                from: "sha256:11".into(),
                to: "sha256:00".into(),
            }),
            kernel: KernelInfo {
                id: "6.1.0-1".into(),
                release: "6.1.0".into(),
                sha256: "11".into(),
            },
            backend: Some(Backend::QemuTcg),
            resources: Resources {
                memory_mib: Mebibytes(512),
                cpu_count: 2,
                size_mib: Mebibytes(1024),
            },
            network: NetworkMode::User,
            ports: vec!["8080:80".parse().unwrap()],
            command: vec!["true".into()],
            started_at: Some(at(1000)),
            exited_at: Some(at(2500)),
            exit: Some(ExitStatus::Exited { code: 3 }),
            exit_code: 3,
            oom_kills: 0,
            stdout: captured("out\n"),
            stderr: captured(""),
            phases: vec![Phase {
                name: "boot".into(),
                ms: 900,
            }],
            final_state: State::Stopped,
            end_cause: EndCause::WorkloadFinished,
            kept: false,
            artifacts: vec![
                Artifact {
                    name: "report".parse().unwrap(),
                    path: "/out/report.txt".parse().unwrap(),
                    state: ArtifactState::Present {
                        kind: ArtifactKind::File,
                        size_bytes: 7,
                        sha256: "22".into(),
                        skipped: 0,
                        saved_as: Some("/here/report".into()),
                    },
                },
                Artifact {
                    name: "site".parse().unwrap(),
                    path: "/out/site".parse().unwrap(),
                    state: ArtifactState::Missing {
                        error: ErrorReport::new(ErrorKind::NotFound, "There is no /out/site."),
                    },
                },
            ],
            error: None,
        };
        let expected = serde_json::json!({
            "workspace": "run-brave-otter-4f9c",
            "state_dir": "/state",
            "image": {
                "reference": "docker.io/library/debian:12",
                "digest": "sha256:00",
                "platform": "linux/amd64",
            },
            "tag_moved": { "from": "sha256:11", "to": "sha256:00" },
            "kernel": { "id": "6.1.0-1", "release": "6.1.0", "sha256": "11" },
            "backend": "qemu-tcg",
            "resources": { "memory_mib": 512, "cpu_count": 2, "size_mib": 1024 },
            "network": "user",
            "ports": [{ "host": "127.0.0.1", "host_port": 8080, "guest_port": 80 }],
            "command": ["true"],
            "started_at": "1970-01-01T00:00:01.000Z",
            "exited_at": "1970-01-01T00:00:02.500Z",
            "exit": { "status": "exited", "code": 3 },
            "exit_code": 3,
            "oom_kills": 0,
            "stdout": { "encoding": "utf8", "data": "out\n", "total_bytes": 4, "truncated": false },
            "stderr": { "encoding": "utf8", "data": "", "total_bytes": 0, "truncated": false },
            "phases": [{ "name": "boot", "ms": 900 }],
            "final_state": "stopped",
            "end_cause": "workload_finished",
            "kept": false,
            "artifacts": [
                {
                    "name": "report",
                    "path": "/out/report.txt",
                    "status": "present",
                    "type": "file",
                    "size_bytes": 7,
                    "sha256": "22",
                    "skipped": 0,
                    "saved_as": "/here/report",
                },
                {
                    "name": "site",
                    "path": "/out/site",
                    "status": "missing",
                    "error": {
                        "kind": "not_found",
                        "message": "There is no /out/site.",
                        "retryable": false,
                    },
                },
            ],
        });
        assert_eq!(serde_json::to_value(&result).unwrap(), expected);
        assert_eq!(
            serde_json::from_value::<RunResult>(expected).unwrap(),
            result
        );
    }
}
