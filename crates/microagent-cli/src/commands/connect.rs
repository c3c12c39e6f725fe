//! `microagent connect`.

use std::{io, process::ExitCode, str::FromStr, sync::Arc, time::Duration};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    Error, LineOptions, LineResult, Microagent, RunEvent, RunIo, SerialEnd, ShellEnd, ShellFate,
    ShellOptions, ShellOrigin, Workspace,
};

use super::exec::{exit_code, take_terminal};
use crate::{
    cli::{EXIT_USAGE, Form, Globals},
    completion,
    options::duration,
    output::Screen,
    signals,
    streams::{DetachableInput, unbuffered},
    surroundings,
    terminal::{self, RawMode},
};

const EXAMPLES: &str = "\
Examples:
  microagent connect web
  microagent connect web --send 'cd /src && git status'
  microagent connect web --send 'make test' --timeout 10m
  microagent connect web --serial

Ctrl-] detaches: the shell then hears a hang-up, as from a terminal that was closed, and the
workspace runs on. It runs on after `exit`, too.

All lines of --send go to one shell, which lives as long as the workspace runs: what one line sets
(directory, variables, functions, background jobs) is there for the next. A line reads nothing from
standard input. Its output is printed exactly, standard output and standard error apart; what a
background job writes after its line is dropped, so redirect it. Lines wait for each other. A line
that is out of time is interrupted; a shell that does not come back from that is killed with all it
started. Lines that end the shell (exit, exec) are told of on standard error, and the next line
starts a new one.

Exit codes:
  of --send, the line's own status; 128+N when signal N ended the shell
  of a shell, its own; 0 after Ctrl-]
  124  the time given by --timeout was over
  125  microagent failed
  126, 127  the shell cannot be executed, or was not found
  2    the command line is wrong";

/// Opens an interactive shell in a workspace that runs, sends it a line, or attaches to its serial
/// console.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConnectArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    /// Run this line in the workspace's persistent shell, and print exactly what it prints
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    send: Option<String>,
    /// The most time the line may take; 0 for any
    #[arg(long, value_name = "TIME", requires = "send", default_value = "5s")]
    timeout: Limit,
    /// How long the workspace may take to be ready, and the lines before to be over; 0 for any time
    #[arg(long, value_name = "TIME", requires = "send", default_value = "10s")]
    ready_timeout: Limit,
    /// The shell to start: any that speaks the POSIX language [default: the workspace's,
    /// /bin/sh unless its spec says otherwise]
    #[arg(long, value_name = "PROGRAM")]
    shell: Option<String>,
    /// Attach to the serial console instead, where the kernel speaks; Ctrl-] detaches
    #[arg(long, conflicts_with_all = ["send", "shell"])]
    serial: bool,
}

/// A limit that may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<Duration>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "0" => Ok(Self(None)),
            other => duration(other).map(|limit| Self(Some(limit))),
        }
    }
}

pub(crate) fn run(args: &ConnectArgs, globals: &Globals, screen: &Screen) -> ExitCode {
    let refusal = match args.send {
        Some(_) => None,
        None => terminal::refusal(
            "An interactive connection",
            true,
            screen.form,
            "--send runs a line without one",
        ),
    };
    if let Some(error) = refusal {
        screen.error(&error.report());
        return ExitCode::from(EXIT_USAGE);
    }
    match try_run(args, globals, screen) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            screen.error(&error.report());
            ExitCode::from(exit_code(&error))
        }
    }
}

fn try_run(args: &ConnectArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspace = microagent.workspaces().open(&args.name)?;
    match &args.send {
        Some(line) => send(&workspace, line, args, screen),
        None => attach(&workspace, args, screen),
    }
}

fn send(
    workspace: &Workspace<'_>,
    line: &str,
    args: &ConnectArgs,
    screen: &Screen,
) -> Result<u8, Error> {
    let mut options = LineOptions::new(line)
        .timeout(args.timeout.0)
        .ready_timeout(args.ready_timeout.0);
    if let Some(shell) = &args.shell {
        options = options.shell(shell);
    }
    let io = match screen.form {
        Form::Json => RunIo::new(io::sink(), io::sink()),
        Form::Text => RunIo::new(unbuffered(io::stdout())?, unbuffered(io::stderr())?),
    };
    signals::forward(io.controller())?;
    let result = workspace.shell_line(&options, io)?;
    report(&result, screen);
    Ok(result.exit_code)
}

fn report(result: &LineResult, screen: &Screen) {
    if screen.form == Form::Json {
        return screen.result(result, |_| String::new());
    }
    if result.shell == Some(ShellOrigin::Restarted) {
        screen.announce("The shell had ended; this line ran in a new one.");
    }
    match result.shell_after {
        Some(ShellFate::Ended) => {
            screen.announce("The shell ended with this line; the next one starts a new shell.");
        }
        Some(ShellFate::Killed) => {
            screen.announce("The shell was killed; the next line starts a new one.");
        }
        Some(ShellFate::Kept) | None => {}
    }
    if let Some(error) = &result.error {
        screen.error(error);
    }
}

fn attach(workspace: &Workspace<'_>, args: &ConnectArgs, screen: &Screen) -> Result<u8, Error> {
    let name = workspace.name().clone();
    let raw = Arc::new(RawMode::default());
    let io = RunIo::new(unbuffered(io::stdout())?, io::sink());
    let controller = io.controller();
    let input = DetachableInput::new(unbuffered(io::stdin())?, controller.clone());
    let take = take_terminal(controller.clone(), Some(Arc::clone(&raw)));
    let (hint, serial) = (*screen, args.serial);
    let io = io.stdin(input).on_event(move |event| {
        if serial && matches!(event, RunEvent::Started) {
            hint.notice("Attached to the serial console; Ctrl-] detaches.");
        }
        take(event);
    });
    let told = signals::detach(controller)?;
    let outcome = if args.serial {
        workspace.serial(io).map(|end| match end {
            SerialEnd::Detached => None,
            SerialEnd::MachineEnded => Some((0, None)),
        })
    } else {
        let mut options = ShellOptions::new(terminal::size().unwrap_or(terminal::DEFAULT_SIZE));
        if let Some(shell) = &args.shell {
            options = options.shell(shell);
        }
        if let Some(kind) = terminal::kind() {
            options = options.terminal(kind);
        }
        workspace.connect_shell(options, io).map(|end| match end {
            ShellEnd::Detached => None,
            ShellEnd::Ended(result) => Some((result.exit_code, result.error)),
        })
    };
    raw.restore();
    Ok(match outcome? {
        Some((code, error)) => {
            if let Some(error) = error {
                screen.error(&error);
            }
            if serial {
                screen.notice(&format!("The console of {name} ended."));
            }
            code
        }
        None => {
            screen.notice(&format!("\nDetached; {name} runs on."));
            told.signal().map_or(0, signals::exit_code)
        }
    })
}
