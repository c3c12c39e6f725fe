//! `microagent run`.

pub(crate) mod args;

use std::{io, process::ExitCode, sync::Arc};

use microagent::{
    EXIT_FAILED, EndCause, Error, Event, EventKind, Microagent, PublishedPort, RunController,
    RunEvent, RunIo, RunResult,
};

pub(crate) use self::args::RunArgs;
use super::artifacts;
use crate::{
    cli::{EXIT_USAGE, Form, Globals},
    output::Screen,
    progress::{self, Progress},
    signals,
    streams::{TerminalInput, unbuffered},
    surroundings,
    terminal::{self, RawMode},
};

pub(crate) fn run(args: RunArgs, globals: &Globals, screen: &Screen) -> ExitCode {
    let refusal = args
        .wants_tty()
        .then(|| terminal::refusal("--tty", args.wants_stdin(), screen.form, "leave it out"))
        .flatten();
    if let Some(error) = refusal {
        screen.error(&error.report());
        return ExitCode::from(EXIT_USAGE);
    }
    match try_run(args, globals, screen) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            screen.error(&error.report());
            ExitCode::from(match error {
                // As a shell says of a command that a signal ended.
                Error::Cancelled { signal } => signals::exit_code(signal),
                Error::TimedOut { .. } => microagent::EXIT_TIMED_OUT,
                _ => EXIT_FAILED,
            })
        }
    }
}

fn try_run(args: RunArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(
        globals,
        &args.workspace.insecure_registry,
    )?);
    if args.detach {
        let options = args.into_options(None)?;
        let started =
            progress::following(screen, |io| microagent.workspaces().launch(&options, io))?;
        screen.result(&started, |started| format!("{}\n", started.workspace));
        return Ok(0);
    }
    let (stdin, tty) = (args.wants_stdin(), args.wants_tty());
    let size = tty.then(terminal::size).flatten();
    let free_ports = args.workspace.wants_free_ports();
    let options = args.into_options(tty.then(|| size.unwrap_or(terminal::DEFAULT_SIZE)))?;

    if options.drops_artifacts() {
        screen.announce(
            "Nothing of the artifacts will be left: give --artifacts-dir DIR to have them, or --keep.",
        );
    }
    let progress = Arc::new(Progress::new(screen));
    let raw = Arc::new(RawMode::default());
    let mut io = match screen.form {
        Form::Json => RunIo::new(io::sink(), io::sink()),
        Form::Text => RunIo::new(unbuffered(io::stdout())?, unbuffered(io::stderr())?),
    };
    if stdin {
        let input = unbuffered(io::stdin())?;
        io = if tty {
            let controller = io.controller();
            io.stdin(TerminalInput::new(input, controller))
        } else {
            io.stdin(input)
        };
    }
    let controller = tty.then(|| io.controller());
    let io = io.on_event(listener(
        Arc::clone(&progress),
        controller,
        stdin.then(|| Arc::clone(&raw)),
        free_ports,
    ));
    let torn_down = signals::forward(io.controller())?;

    let outcome = microagent.run(&options, io);
    progress.clear();
    raw.restore();
    let mut result = outcome?;
    if let (EndCause::Killed, Some(signal)) = (result.end_cause, torn_down.signal()) {
        result.exit_code = signals::exit_code(signal);
    }
    report(&result, screen);
    Ok(result.exit_code)
}

fn report(result: &RunResult, screen: &Screen) {
    match (screen.form, &result.error) {
        (Form::Json, _) => screen.result(result, |_| String::new()),
        // Whoever tore it down knows why.
        (Form::Text, Some(_)) if result.end_cause == EndCause::Killed => {}
        (Form::Text, Some(error)) => screen.error(error),
        (Form::Text, None) => {}
    }
    for artifact in &result.artifacts {
        artifacts::tell(artifact, screen);
    }
    if result.kept {
        screen.notice(&format!("The workspace {} was kept.", result.workspace));
    }
}

/// Draws progress until the command runs; then the terminal is the command's.
fn listener(
    progress: Arc<Progress>,
    terminal: Option<RunController>,
    input: Option<Arc<RawMode>>,
    free_ports: bool,
) -> impl Fn(RunEvent) + Send + Sync + 'static {
    move |event| {
        tracing::debug!(?event, "run");
        match event {
            RunEvent::Started => {
                progress.clear();
                if let Some(controller) = &terminal {
                    if let Some(raw) = &input {
                        raw.enter();
                    }
                    // It may have changed since the command was asked for.
                    if let Some(size) = terminal::size() {
                        controller.resize(size);
                    }
                }
            }
            RunEvent::Machine(Event {
                kind: EventKind::PortsPublished { ports },
                ..
            }) => published(&ports, &progress, free_ports),
            event => progress.step(&event),
        }
    }
}

/// The ports that are published, each in a line: where a free one was asked for, nobody but us
/// knows which it was.
fn published(ports: &[PublishedPort], progress: &Progress, free_ports: bool) {
    for port in ports {
        let words = format!(
            "Port {} of the guest is published at {}.",
            port.guest_port,
            port.host_address()
        );
        if free_ports {
            progress.announce(&words);
        } else {
            progress.note(&words);
        }
    }
}
