//! Things done in a workspace that runs: commands, lines of its shell, a look at its serial
//! console. All of them are sessions with its supervisor, attended in one loop.

mod attend;
mod options;
mod result;
mod target;

use std::io::sink;

use microagent_protocol::{
    EnvVar, ExecRequest, ExecRole, ShellLine, ShellStart, supervisor::Command,
};

pub(crate) use self::target::Target;
use self::{attend::Limits, result::Facts};
pub use self::{
    options::{ExecOptions, LineOptions, ShellOptions},
    result::{ExecResult, LineResult, SerialEnd, ShellEnd},
};
use crate::{
    command::change_env,
    error::Result,
    io::RunIo,
    options::EnvChange,
    run::millis,
    session::{Sinks, lock},
};

const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// Runs a command in `target`.
pub(crate) fn exec(target: &Target, options: &ExecOptions, io: RunIo) -> Result<ExecResult> {
    let facts = attend_exec(target, options, io)?;
    Ok(facts.exec(options.argv.clone()))
}

/// Runs an interactive shell in `target`.
pub(crate) fn shell(target: &Target, options: ShellOptions, io: RunIo) -> Result<ShellEnd> {
    let options = options.into_exec();
    let facts = attend_exec(target, &options, io)?;
    Ok(if facts.detached() {
        ShellEnd::Detached
    } else {
        ShellEnd::Ended(facts.exec(options.argv))
    })
}

fn attend_exec<'a>(target: &'a Target, options: &ExecOptions, io: RunIo) -> Result<Facts<'a>> {
    options.check()?;
    let request = ExecRequest {
        role: ExecRole::Command,
        argv: options.argv.clone(),
        env: env(target, &options.env)?,
        cwd: options.workdir.clone().or_else(|| target.cwd.clone()),
        user: options.user.clone().or_else(|| target.user.clone()),
        tty: options.tty,
        stdin: io.has_stdin(),
        stop_signal: None,
    };
    let limits = Limits {
        ready: Some(options.ready_timeout.unwrap_or(target.ready_limit)),
        time: options.timeout,
        steps: &[SIGTERM, SIGKILL],
    };
    attend(target, Command::Exec(request), limits, io)
}

/// Runs a line in `target`'s persistent shell.
pub(crate) fn line(target: &Target, options: &LineOptions, io: RunIo) -> Result<LineResult> {
    options.check()?;
    let line = ShellLine {
        line: options.line.clone(),
        shell: ShellStart {
            program: options.shell.clone(),
            env: target.env.clone(),
            cwd: target.cwd.clone(),
            user: target.user.clone(),
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
    attend(target, Command::Shell(line), limits, io)?.line(options.line.clone())
}

/// Attaches to `target`'s serial console until it ends or is let go of.
pub(crate) fn serial(target: &Target, io: RunIo) -> Result<SerialEnd> {
    let limits = Limits {
        ready: Some(target.ready_limit),
        time: None,
        steps: &[],
    };
    let facts = attend(target, Command::Console, limits, io)?;
    Ok(if facts.detached() {
        SerialEnd::Detached
    } else {
        SerialEnd::MachineEnded
    })
}

fn attend<'a>(
    target: &'a Target,
    command: Command,
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

/// The workspace's own variables with changes.
fn env(target: &Target, changes: &[EnvChange]) -> Result<Vec<EnvVar>> {
    let mut vars = target.env.clone();
    change_env(&mut vars, changes)?;
    Ok(vars)
}
