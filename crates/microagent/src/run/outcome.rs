//! From what was seen of a machine to the result a caller gets, or the error.

use std::time::{Duration, Instant};

use microagent_protocol::{
    EndCause, ExitStatus, State, WorkspaceName,
    exec::StartFailure,
    supervisor::{ErrorKind, ErrorReport},
};

use super::{drive::Driven, phases::Phases, prepare::PreparedImage};
use crate::{
    artifacts::Artifact,
    command::SHELL,
    config::Config,
    error::{Error, Result},
    options::RunOptions,
    result::{KernelInfo, RunResult, exit_code, start_failure_kind},
    session::{Sinks, lock},
};

/// What was seen, and what had been asked for.
pub(crate) struct Outcome<'a> {
    pub(crate) driven: Driven,
    pub(crate) config: &'a Config,
    pub(crate) options: &'a RunOptions,
    pub(crate) name: &'a WorkspaceName,
    pub(crate) image: &'a PreparedImage,
    pub(crate) kernel: &'a KernelInfo,
    pub(crate) argv: Vec<String>,
    pub(crate) artifacts: Vec<Artifact>,
    /// How long it took to collect them.
    pub(crate) collected: Option<Duration>,
}

impl Outcome<'_> {
    /// The result.
    ///
    /// # Errors
    /// When the command never started, or its output could not be handed on.
    pub(crate) fn into_result(
        mut self,
        sinks: &Sinks,
        phases: Phases,
        begun: Instant,
    ) -> Result<RunResult> {
        let end = self.end_cause();
        let seen_to_start = self.driven.started_at.is_some() || self.driven.exit.is_some();
        match self.driven.failure.take() {
            // The connection broke because the machine ended: that is what is worth telling.
            Some(Error::SupervisorFailed { .. }) | None if seen_to_start => {}
            Some(Error::SupervisorFailed { .. } | Error::Supervisor(_)) | None
                if self.driven.end.is_some() =>
            {
                return Err(self.never_started(end));
            }
            Some(error) => return Err(error),
            None => return Err(self.never_started(end)),
        }
        let phases = self.phases(phases, begun);
        let error = self.error(end);
        let driven = self.driven;
        let report = driven.exit;
        let exit = report.as_ref().map(|report| report.status.clone());
        Ok(RunResult {
            workspace: self.name.to_string(),
            state_dir: self.config.state_dir.clone(),
            image: self.image.info.clone(),
            tag_moved: self.image.tag_moved.clone(),
            kernel: self.kernel.clone(),
            resources: self.options.resources(),
            network: self.options.network,
            ports: driven.ports,
            command: self.argv,
            kept: self.options.keep,
            artifacts: self.artifacts,
            exit_code: exit_code(exit.as_ref(), end),
            exit,
            oom_kills: report.map_or(0, |report| report.oom_kills),
            backend: driven.backend,
            started_at: driven.started_at,
            exited_at: driven.exited_at,
            stdout: lock(&sinks.stdout).captured(),
            stderr: lock(&sinks.stderr).captured(),
            phases: phases.into_list(),
            final_state: driven.state.unwrap_or(State::Failed),
            end_cause: end,
            error,
        })
    }

    /// Why the machine ended. That it was killed after its command had ended is only how a run
    /// that keeps nothing is over sooner.
    fn end_cause(&self) -> EndCause {
        let end = self.driven.end.unwrap_or(EndCause::VmmDied);
        match end {
            EndCause::TimedOut => end,
            _ if self.driven.exit.is_some() => EndCause::WorkloadFinished,
            _ => end,
        }
    }

    fn never_started(&self, end: EndCause) -> Error {
        if let (EndCause::TimedOut, Some(limit)) = (end, self.options.timeout) {
            return Error::TimedOut { limit };
        }
        Error::NeverStarted {
            workspace: self.name.to_string(),
            reason: self.reason(),
            console: self.driven.detail.clone(),
            memory: self.options.resources().memory_mib,
        }
    }

    /// Why the machine ended, for people.
    fn reason(&self) -> String {
        match self.driven.end {
            Some(end) => end.to_string(),
            None => "its supervisor ended unexpectedly".to_owned(),
        }
    }

    fn phases(&self, mut phases: Phases, begun: Instant) -> Phases {
        let driven = &self.driven;
        if let Some(launch) = driven.vmm_ms {
            phases.add_ms("launch", launch);
        }
        if let Some(ready) = driven.ready_ms {
            phases.add_ms("boot", ready.saturating_sub(driven.vmm_ms.unwrap_or(0)));
        }
        let own = [
            ("setup", driven.setup),
            ("command", driven.command),
            ("shutdown", driven.shutdown),
            ("artifacts", self.collected),
            ("total", Some(begun.elapsed())),
        ];
        for (name, duration) in own {
            if let Some(duration) = duration {
                phases.add(name, duration);
            }
        }
        phases
    }

    /// What the exit code alone does not say.
    fn error(&self, end: EndCause) -> Option<ErrorReport> {
        let report = self.driven.exit.as_ref();
        let error = match (end, report.map(|report| &report.status)) {
            (EndCause::TimedOut, _) => {
                let limit = self.options.timeout.map(humantime::format_duration);
                let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
                ErrorReport::new(
                    ErrorKind::Permanent,
                    format!("The time limit{limit} was over, so the command was ended."),
                )
                .remedy("Give it more time with --timeout.")
            }
            (_, Some(ExitStatus::FailedToStart { reason, message })) => {
                self.start_failure(*reason, message)
            }
            (_, Some(ExitStatus::Signaled { signal: 9 }))
                if report.is_some_and(|report| report.oom_kills > 0) =>
            {
                ErrorReport::new(ErrorKind::Permanent, "The guest ran out of memory.")
                    .remedy("Give it more with --memory.")
            }
            (_, Some(_)) => return None,
            (_, None) => {
                let message = format!(
                    "The machine of {} ended before its command did: {}.",
                    self.name,
                    self.reason()
                );
                let report = ErrorReport::new(ErrorKind::Permanent, message);
                match &self.driven.detail {
                    Some(detail) => report.detail(detail.clone()),
                    None => report,
                }
            }
        };
        Some(error)
    }

    fn start_failure(&self, reason: StartFailure, message: &str) -> ErrorReport {
        let kind = start_failure_kind(reason);
        if reason == StartFailure::NotFound && self.options.shell.is_some() {
            let image = &self.options.image;
            return ErrorReport::new(kind, format!("{image} has no shell: {message}."))
                .remedy(format!(
                    "--exec needs {SHELL} in the image; give a program and its arguments after the image instead."
                ));
        }
        let message = message.trim_end_matches('.');
        ErrorReport::new(
            kind,
            format!("The command could not be started: {message}."),
        )
    }
}
