//! `microagent exec`.

use std::{io, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    EXIT_FAILED, Error, ExecOptions, ExecResult, Microagent, RunController, RunEvent, RunIo,
    TtySize,
};

use crate::{
    cli::{EXIT_USAGE, Form, Globals},
    completion,
    options::{self as values, EnvArg},
    output::Screen,
    signals,
    streams::{TerminalInput, unbuffered},
    surroundings,
    terminal::{self, RawMode},
};

const EXAMPLES: &str = "\
Examples:
  microagent exec web -- psql -h localhost -c 'select 1'
  microagent exec -it web bash
  tar -c src | microagent exec -i -w /src web tar -x
  microagent exec --timeout 30s -e CI=1 web make test

Nothing after -- is ours, and nothing after the command's first word. No shell is implied. The
environment, directory and user are the workspace's own; -e, -w and -u go over them.

Exit codes:
  the command's own; 128+N when signal N ended it
  124  the time given by --timeout was over
  125  microagent failed
  126  the command cannot be executed
  127  the command was not found
  2    the command line is wrong";

/// Runs a command in a workspace that runs, and exits as it does.
///
/// A workspace that is starting is waited for. Any number of commands may run at a time.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "microagent exec [OPTIONS] WORKSPACE [--] COMMAND [ARG]...")]
pub(crate) struct ExecArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,

    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Set a variable, or take its value from here (-e NAME); repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArg>,
    /// Set the variables in this file, a NAME[=VALUE] a line; repeatable, -e goes over it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Run in this directory; made if it is missing
    #[arg(long, short, value_name = "DIR", visible_alias = "cwd")]
    workdir: Option<String>,
    /// Run as this user: NAME, UID, NAME:GROUP or UID:GID of the guest
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// The most time the command may take (90, 90s, 1.5m, 2h, 500ms); it then gets SIGTERM, and
    /// soon after SIGKILL
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// How long a workspace that is starting may take to be ready
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    ready_timeout: Option<Duration>,
}

impl ExecArgs {
    /// The command and its arguments.
    #[cfg(test)]
    pub(crate) fn command(&self) -> &[String] {
        &self.command
    }

    fn options(&self, tty: Option<TtySize>) -> Result<ExecOptions, Error> {
        let mut options = ExecOptions::new(&self.command);
        for path in &self.env_file {
            for var in values::read_env_file(path)? {
                options = options.env(var.name(), var.value());
            }
        }
        for var in &self.env {
            options = match var {
                EnvArg::Set(var) => options.env(var.name(), var.value()),
                EnvArg::FromHost(name) => match values::host_variable(name) {
                    Some(value) => options.env(name, value),
                    None => options.env_remove(name),
                },
            };
        }
        if let Some(directory) = &self.workdir {
            options = options.workdir(directory);
        }
        if let Some(user) = &self.user {
            options = options.user(user);
        }
        if let Some(size) = tty {
            options = options.tty(size);
        }
        if let Some(timeout) = self.timeout {
            options = options.timeout(timeout);
        }
        if let Some(timeout) = self.ready_timeout {
            options = options.ready_timeout(timeout);
        }
        Ok(options)
    }
}

pub(crate) fn run(args: &ExecArgs, globals: &Globals, screen: &Screen) -> ExitCode {
    let refusal = args
        .tty
        .then(|| terminal::refusal("--tty", args.interactive, screen.form, "leave it out"))
        .flatten();
    if let Some(error) = refusal {
        screen.error(&error.report());
        return ExitCode::from(EXIT_USAGE);
    }
    match try_run(args, globals, screen) {
        Ok(result) => {
            report(&result, screen);
            ExitCode::from(result.exit_code)
        }
        Err(error) => {
            screen.error(&error.report());
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The exit code of a command that could not be asked for, or whose output was lost.
pub(crate) fn exit_code(error: &Error) -> u8 {
    match error {
        // As a shell says of a command that a signal ended.
        Error::Cancelled { signal } => signals::exit_code(*signal),
        _ => EXIT_FAILED,
    }
}

fn try_run(args: &ExecArgs, globals: &Globals, screen: &Screen) -> Result<ExecResult, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspace = microagent.workspaces().open(&args.name)?;
    let size = args
        .tty
        .then(|| terminal::size().unwrap_or(terminal::DEFAULT_SIZE));
    let options = args.options(size)?;

    let raw = Arc::new(RawMode::default());
    let mut io = match screen.form {
        Form::Json => RunIo::new(io::sink(), io::sink()),
        Form::Text => RunIo::new(unbuffered(io::stdout())?, unbuffered(io::stderr())?),
    };
    if args.interactive {
        let input = unbuffered(io::stdin())?;
        io = if args.tty {
            let controller = io.controller();
            io.stdin(TerminalInput::new(input, controller))
        } else {
            io.stdin(input)
        };
    }
    if args.tty {
        let controller = io.controller();
        let raw = args.interactive.then(|| Arc::clone(&raw));
        io = io.on_event(take_terminal(controller, raw));
    }
    signals::forward(io.controller())?;
    let outcome = workspace.exec(&options, io);
    raw.restore();
    outcome
}

/// Gives the terminal to the guest as soon as something there has it.
pub(crate) fn take_terminal(
    controller: RunController,
    raw: Option<Arc<RawMode>>,
) -> impl Fn(RunEvent) + Send + Sync + 'static {
    move |event| {
        if matches!(event, RunEvent::Started) {
            if let Some(raw) = &raw {
                raw.enter();
            }
            // It may have changed since it was asked for.
            if let Some(size) = terminal::size() {
                controller.resize(size);
            }
        }
    }
}

fn report(result: &ExecResult, screen: &Screen) {
    match (screen.form, &result.error) {
        (Form::Json, _) => screen.result(result, |_| String::new()),
        (Form::Text, Some(error)) => screen.error(error),
        (Form::Text, None) => {}
    }
}
