//! What a guest was seen to be ready for: a process is really started in it, once, when somebody asks.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use microagent_protocol::{
    ExecRequest, ExecRole, ExitStatus, FrameKind, Readiness, ReadinessReport, ReadinessSignal,
    StartFailure, State, Timestamp,
    exec::ExitReport,
    supervisor::{ErrorReport, Status},
};

use crate::{
    crew::{Crew, lock},
    session::{self, Opened, Sessions},
    text::harmless,
};

/// How long somebody who asks waits for what is being found out.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a process that does nothing may take.
const PROOF_LIMIT: Duration = Duration::from_secs(30);

/// The shell that does nothing.
const SHELL: [&str; 3] = ["/bin/sh", "-c", ":"];

/// The agent itself, which does nothing but exit when it is not the first process: a program that
/// every guest has.
const AGENT: [&str; 1] = ["/proc/self/exe"];

/// What was found out of one machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proofs(Arc<(Mutex<Found>, Condvar)>);

#[derive(Debug, Default)]
struct Found {
    looking: bool,
    exec: Option<Readiness>,
    shell: Option<Readiness>,
}

impl Proofs {
    /// Adds to `status` what is known of its guest. Where a guest runs whose readiness was not seen
    /// yet it is found out first, for a moment at most. `vsock` says where the agent listens.
    pub(crate) fn complete(
        &self,
        status: &mut Status,
        sessions: &Sessions,
        crew: &Crew,
        vsock: impl FnOnce() -> Result<std::path::PathBuf, ErrorReport>,
    ) {
        if status.state == State::Running && self.begin() {
            let found = vsock()
                .map_err(|report| report.to_string())
                .and_then(|vsock| {
                    let (proofs, sessions) = (self.clone(), sessions.clone());
                    crew.spawn("readiness", move || {
                        let (exec, shell) = look(&sessions, &vsock);
                        proofs.end(exec, Some(shell));
                    })
                    .map_err(|error| error.to_string())
                });
            if let Err(error) = found {
                self.end(failed(error), None);
            }
        }
        let (exec, shell) = self.wait();
        let waits = || Readiness {
            detail: Some("no process was started in it yet".to_owned()),
            ..Readiness::default()
        };
        let ready = status.state == State::Running;
        for (signal, seen) in [
            (ReadinessSignal::ExecReady, exec),
            (ReadinessSignal::ShellReady, shell),
        ] {
            let mut readiness = seen.unwrap_or_else(waits);
            if !ready {
                // What was seen once is not so now.
                readiness.ready = false;
                readiness.detail = Some(format!("it is {}", status.state));
            }
            status.readiness.insert(signal, readiness);
        }
    }

    /// Whether it is for the caller to look.
    fn begin(&self) -> bool {
        let mut found = lock(&self.0.0);
        let known = found.exec.as_ref().is_some_and(|exec| exec.ready);
        let begin = !found.looking && !known;
        found.looking |= begin;
        begin
    }

    fn end(&self, exec: Readiness, shell: Option<Readiness>) {
        let (found, changed) = &*self.0;
        let mut found = lock(found);
        found.looking = false;
        found.exec = Some(exec);
        found.shell = shell.or(found.shell.take());
        changed.notify_all();
    }

    fn wait(&self) -> (Option<Readiness>, Option<Readiness>) {
        let deadline = Instant::now() + PATIENCE;
        let (found, changed) = &*self.0;
        let mut found = lock(found);
        while found.looking {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            found = changed
                .wait_timeout(found, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        (found.exec.clone(), found.shell.clone())
    }
}

/// What the engine itself knows.
pub(crate) fn known(
    ready_at: Option<Timestamp>,
    state: State,
    result_at: Option<Timestamp>,
    has_workload: bool,
) -> ReadinessReport {
    let guest = match (ready_at, state) {
        (Some(at), State::Running) => seen(at, "the guest agent said so"),
        (_, State::Starting) => waiting("the guest agent has not answered yet".to_owned()),
        (_, state) => waiting(format!("it is {state}")),
    };
    let result = match (result_at, has_workload) {
        (Some(at), _) => seen(at, "the workload ended"),
        (None, true) => waiting("the workload has not ended yet".to_owned()),
        (None, false) => waiting("there is no workload".to_owned()),
    };
    let mediation = Readiness {
        ready: state == State::Running,
        observed_at: None,
        detail: Some("there is no mediation".to_owned()),
        error: None,
    };
    [
        (ReadinessSignal::GuestReady, guest),
        (ReadinessSignal::ResultReady, result),
        (ReadinessSignal::MediationReady, mediation),
    ]
    .into()
}

fn seen(at: Timestamp, how: &str) -> Readiness {
    Readiness {
        ready: true,
        observed_at: Some(at),
        detail: Some(how.to_owned()),
        error: None,
    }
}

fn waiting(what: String) -> Readiness {
    Readiness {
        detail: Some(what),
        ..Readiness::default()
    }
}

fn failed(error: String) -> Readiness {
    Readiness {
        observed_at: Some(SystemTime::now().into()),
        error: Some(error),
        ..Readiness::default()
    }
}

/// Whether processes can be started, and whether the shell can.
fn look(sessions: &Sessions, vsock: &Path) -> (Readiness, Readiness) {
    let ended = |how: String| seen(SystemTime::now().into(), &how);
    match run(sessions, vsock, &SHELL) {
        Ok(ExitStatus::FailedToStart { reason, message }) => {
            let shell = failed(message);
            if reason == StartFailure::Guest {
                return (shell.clone(), shell);
            }
            // A guest without a shell can run other programs.
            let exec = match run(sessions, vsock, &AGENT) {
                Ok(ExitStatus::FailedToStart { message, .. }) => failed(message),
                Ok(_) => ended("the agent itself was started in it, and ended".to_owned()),
                Err(error) => failed(error),
            };
            (exec, shell)
        }
        Ok(status) => {
            let exec = ended(format!(
                "`{}` was started in it, and ended",
                SHELL.join(" ")
            ));
            let shell = match status.code() {
                0 => exec.clone(),
                code => failed(format!("`{}` exited with {code}", SHELL.join(" "))),
            };
            (exec, shell)
        }
        Err(error) => (failed(error.clone()), failed(error)),
    }
}

/// Runs a program that does nothing, as root.
fn run(sessions: &Sessions, vsock: &Path, argv: &[&str]) -> Result<ExitStatus, String> {
    let seat = sessions.admit().map_err(|report| report.to_string())?;
    let request = ExecRequest {
        role: ExecRole::Command,
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        user: Some("0:0".to_owned()),
        tty: None,
        stdin: false,
        stop_signal: None,
    };
    let opened = session::open(&seat, vsock, request).map_err(|report| report.to_string())?;
    let mut guest = match opened {
        Opened::Started { guest, .. } => guest,
        Opened::Failed(status) => return Ok(status),
    };
    let limit = |guest: &microagent_protocol::FrameReader<std::os::unix::net::UnixStream>| {
        guest.get_ref().set_read_timeout(Some(PROOF_LIMIT))
    };
    let lost = |error: io::Error| format!("the session broke off: {error}");
    limit(&guest).map_err(lost)?;
    loop {
        let frame = guest
            .require()
            .map_err(|error| harmless(&error.to_string(), 500))?;
        match frame.kind {
            FrameKind::Exit => {
                let report: ExitReport = frame
                    .json()
                    .map_err(|error| harmless(&error.to_string(), 500))?;
                return Ok(harmless_status(report.status));
            }
            FrameKind::Stdout | FrameKind::Stderr | FrameKind::StdinCredit => {}
            kind => return Err(format!("the guest sent a {kind:?} frame in a session")),
        }
    }
}

fn harmless_status(status: ExitStatus) -> ExitStatus {
    match status {
        ExitStatus::FailedToStart { reason, message } => ExitStatus::FailedToStart {
            reason,
            message: harmless(&message, 500),
        },
        status => status,
    }
}
