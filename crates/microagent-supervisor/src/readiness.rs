//! What a guest was seen to be ready for: processes are really started in it, once, when somebody asks.

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
    /// How many processes are being tried.
    trying: usize,
    exec: Option<Readiness>,
    shell: Option<Readiness>,
    /// Whether it was the guest that said what comes of its shell, and not the way there that failed.
    shell_answered: bool,
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
            match vsock() {
                // Side by side: neither is to wait for the other.
                Ok(vsock) => {
                    self.try_out(ReadinessSignal::ExecReady, &vsock, sessions, crew);
                    self.try_out(ReadinessSignal::ShellReady, &vsock, sessions, crew);
                }
                Err(report) => {
                    let report = report.to_string();
                    self.end(ReadinessSignal::ExecReady, Err(report.clone()));
                    self.end(ReadinessSignal::ShellReady, Err(report));
                }
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
        let exec_known = found.exec.as_ref().is_some_and(|exec| exec.ready);
        let begin = found.trying == 0 && !(exec_known && found.shell_answered);
        if begin {
            found.trying = 2;
        }
        begin
    }

    /// Starts the process that shows `signal`, in a thread of its own.
    fn try_out(&self, signal: ReadinessSignal, vsock: &Path, sessions: &Sessions, crew: &Crew) {
        let (proofs, sessions, vsock) = (self.clone(), sessions.clone(), vsock.to_owned());
        let spawned = crew.spawn("readiness", move || {
            proofs.end(signal, look(signal, &sessions, &vsock));
        });
        if let Err(error) = spawned {
            self.end(signal, Err(error.to_string()));
        }
    }

    fn end(&self, signal: ReadinessSignal, answer: Result<Readiness, String>) {
        let answered = answer.is_ok();
        let readiness = answer.unwrap_or_else(failed);
        let (found, changed) = &*self.0;
        let mut found = lock(found);
        found.trying = found.trying.saturating_sub(1);
        match signal {
            ReadinessSignal::ShellReady => {
                found.shell = Some(readiness);
                found.shell_answered = answered;
            }
            _ => found.exec = Some(readiness),
        }
        changed.notify_all();
    }

    fn wait(&self) -> (Option<Readiness>, Option<Readiness>) {
        let deadline = Instant::now() + PATIENCE;
        let (found, changed) = &*self.0;
        let mut found = lock(found);
        while found.trying > 0 {
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

/// Whether the process that shows `signal` can be started. For all but the shell it is the agent itself: a guest
/// without a shell can run other programs. An error is none of the guest's answers: it is worth another try.
fn look(signal: ReadinessSignal, sessions: &Sessions, vsock: &Path) -> Result<Readiness, String> {
    let (argv, name) = match signal {
        ReadinessSignal::ShellReady => (&SHELL[..], format!("`{}`", SHELL.join(" "))),
        _ => (&AGENT[..], "the agent itself".to_owned()),
    };
    Ok(match run(sessions, vsock, argv)? {
        ExitStatus::FailedToStart {
            reason: StartFailure::Guest,
            message,
        } => return Err(message),
        ExitStatus::FailedToStart { message, .. } => failed(message),
        status if status.code() == 0 || signal != ReadinessSignal::ShellReady => seen(
            SystemTime::now().into(),
            &format!("{name} was started in it, and ended"),
        ),
        status => failed(format!("{name} exited with {}", status.code())),
    })
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
