//! Things done in a workspace that runs: commands, lines of its shell, a look at its serial
//! console. All of them are sessions with its supervisor, attended in one loop.

mod attend;
mod options;
mod result;
mod target;

use std::io::sink;

use microagent_protocol::{
    ExecRequest, ExecRole, ShellLine, ShellStart, State, supervisor::Command,
};

use self::{attend::Limits, result::Facts, target::Target};
pub use self::{
    options::{ExecOptions, LineOptions, ShellOptions},
    result::{ExecResult, LineResult, SerialEnd, ShellEnd},
};
use crate::{
    command::change_env,
    error::Result,
    io::RunIo,
    run::millis,
    session::{Sinks, lock},
    workspaces::Workspace,
};

impl Workspace<'_> {
    /// Runs a command in its machine; returns when the command has ended. Any number of them
    /// may run at a time.
    ///
    /// The command's environment, directory and user are the workspace's unless the options say
    /// otherwise. A workspace that is starting is waited for. The command is asked for once: if
    /// the connection breaks, the result says that its end was not seen.
    ///
    /// # Errors
    /// [`crate::Error::State`] if the workspace does not run, [`crate::Error::NotReady`] if it is
    /// not ready in time, [`crate::Error::Invalid`] for options that make no sense.
    pub fn exec(&self, options: &ExecOptions, io: RunIo) -> Result<ExecResult> {
        exec(&self.thawed_target()?, options, io)
    }

    /// Runs an interactive shell in its machine, on a terminal there. [`RunIo::stdin`] is what is
    /// typed, and [`crate::RunController`] tells of sizes and lets go. The workspace runs on.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn connect_shell(&self, options: ShellOptions, io: RunIo) -> Result<ShellEnd> {
        shell(&self.thawed_target()?, options, io)
    }

    /// Runs a line in its persistent shell; returns when the line is over.
    ///
    /// # Errors
    /// As [`exec`](Self::exec), and when the lines before are not over in time.
    pub fn shell_line(&self, options: &LineOptions, io: RunIo) -> Result<LineResult> {
        line(&self.thawed_target()?, options, io)
    }

    /// Attaches to its serial console: what the guest writes from now on goes to the output,
    /// the input is typed. Returns when the machine has ended, or when it is let go of by
    /// [`crate::RunController::detach`].
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn serial(&self, io: RunIo) -> Result<SerialEnd> {
        serial(&self.target(self.state()?)?, io)
    }

    /// Where something can be run: not where the vCPUs are frozen.
    fn thawed_target(&self) -> Result<Target> {
        match self.state()? {
            state @ (State::Paused | State::Quarantined) => Err(self.in_state(state, "used")),
            state => self.target(state),
        }
    }

    fn target(&self, state: State) -> Result<Target> {
        let control = self.connect_in(state)?;
        Ok(Target {
            name: self.name().to_string(),
            directory: self.directory().to_owned(),
            control,
            session: self.manifest().session.clone(),
            shell: self.manifest().shell.clone(),
            ready_limit: self.config().timeouts.boot,
            capture_limit: self.config().capture_limit,
        })
    }
}

const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// Runs a command in `target`.
fn exec(target: &Target, options: &ExecOptions, io: RunIo) -> Result<ExecResult> {
    let facts = attend_exec(target, options, io)?;
    Ok(facts.exec(options.argv.clone()))
}

/// Runs an interactive shell in `target`.
fn shell(target: &Target, options: ShellOptions, io: RunIo) -> Result<ShellEnd> {
    let options = options.into_exec(target.shell.as_deref());
    let facts = attend_exec(target, &options, io)?;
    Ok(if facts.detached() {
        ShellEnd::Detached
    } else {
        ShellEnd::Ended(Box::new(facts.exec(options.argv)))
    })
}

fn attend_exec<'a>(target: &'a Target, options: &ExecOptions, io: RunIo) -> Result<Facts<'a>> {
    let _span = tracing::info_span!("exec", workspace = target.name).entered();
    options.check()?;
    let mut request = ExecRequest {
        role: ExecRole::Command,
        argv: options.argv.clone(),
        tty: options.tty,
        stdin: io.has_stdin(),
        ..target.session.clone()
    };
    change_env(&mut request.env, &options.env)?;
    request.cwd = options.workdir.clone().or(request.cwd);
    request.user = options.user.clone().or(request.user);
    let limits = Limits {
        ready: Some(options.ready_timeout.unwrap_or(target.ready_limit)),
        time: options.timeout,
        steps: &[SIGTERM, SIGKILL],
    };
    attend(target, &Command::Exec(request), limits, io)
}

/// Runs a line in `target`'s persistent shell.
fn line(target: &Target, options: &LineOptions, io: RunIo) -> Result<LineResult> {
    options.check()?;
    let line = ShellLine {
        line: options.line.clone(),
        shell: ShellStart {
            program: options.program(target.shell.as_deref()),
            env: target.session.env.clone(),
            cwd: target.session.cwd.clone(),
            user: target.session.user.clone(),
        },
        turn_limit_ms: options.ready_timeout.map(millis),
    };
    let limits = Limits {
        ready: options.ready_timeout,
        time: options.timeout,
        // The agent kills a shell that does not come back; the second step is for a guest
        // that does nothing of the kind.
        steps: &[SIGINT, SIGKILL],
    };
    attend(target, &Command::Shell(line), limits, io)?.line(options.line.clone())
}

/// Attaches to `target`'s serial console until it ends or is let go of.
fn serial(target: &Target, io: RunIo) -> Result<SerialEnd> {
    let limits = Limits {
        ready: Some(target.ready_limit),
        time: None,
        steps: &[],
    };
    let facts = attend(target, &Command::Console, limits, io)?;
    Ok(if facts.detached() {
        SerialEnd::Detached
    } else {
        SerialEnd::MachineEnded
    })
}

fn attend<'a>(
    target: &'a Target,
    command: &Command,
    limits: Limits,
    io: RunIo,
) -> Result<Facts<'a>> {
    let mut parts = io.into_parts();
    let [stdout, stderr] =
        [&mut parts.stdout, &mut parts.stderr].map(|it| std::mem::replace(it, Box::new(sink())));
    let sinks = Sinks::new(stdout, stderr, target.capture_limit);
    let attended = attend::attend(target, command, limits, parts, &sinks)?;
    Ok(Facts {
        target,
        attended,
        limit: limits.time,
        stdout: lock(&sinks.stdout).captured(),
        stderr: lock(&sinks.stderr).captured(),
    })
}

#[cfg(test)]
mod tests;
