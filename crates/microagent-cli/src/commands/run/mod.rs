//! `microagent run`.

pub(crate) mod args;

use std::{io, process::ExitCode, sync::Arc};

use microagent::{
    Backend, EXIT_FAILED, EndCause, Error, Event, EventKind, Microagent, RunController, RunEvent,
    RunIo, RunResult,
};

pub(crate) use self::args::RunArgs;
use crate::{
    cli::{EXIT_USAGE, Form, Globals},
    output::Screen,
    progress::Progress,
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
    let (stdin, tty) = (args.wants_stdin(), args.wants_tty());
    let size = tty.then(terminal::size).flatten();
    let free_ports = args.workspace.wants_free_ports();
    let options = args.into_options(tty.then(|| size.unwrap_or(terminal::DEFAULT_SIZE)))?;

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
        *screen,
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
    if result.kept {
        screen.notice(&format!("The workspace {} was kept.", result.workspace));
    }
}

/// Draws progress until the command runs; then the terminal is the command's.
fn listener(
    screen: Screen,
    progress: Arc<Progress>,
    terminal: Option<RunController>,
    input: Option<Arc<RawMode>>,
    free_ports: bool,
) -> impl Fn(RunEvent) + Send + Sync + 'static {
    move |event| {
        tracing::debug!(?event, "run");
        match event {
            RunEvent::Image(event) => progress.image(&event),
            RunEvent::Kernel(event) => progress.kernel(&event),
            RunEvent::Bundle { name } => {
                progress.say(&format!("Making a disk of the bundle {name}"));
            }
            RunEvent::Workspace { name } => progress.say(&format!("Booting {name}")),
            RunEvent::Machine(event) => machine(&event, &screen, &progress, free_ports),
            RunEvent::Setup { command } => {
                progress.note(&format!("Setup: {command}"));
                // What it prints is next.
                progress.clear();
            }
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
            _ => {}
        }
    }
}

fn machine(event: &Event, screen: &Screen, progress: &Progress, free_ports: bool) {
    match &event.kind {
        EventKind::Starting { backend: Backend::QemuTcg, .. } if screen.lively => progress.note(
            "No hardware virtualisation: software emulation is slower, and a larger attack \
             surface, though the guest still has a kernel of its own (microagent doctor says more).",
        ),
        EventKind::PortsPublished { ports } => {
            for port in ports {
                let words = format!(
                    "Port {} of the guest is published at {}.",
                    port.guest_port,
                    port.host_address()
                );
                // Nobody but us knows which one was free.
                if free_ports {
                    progress.announce(&words);
                } else {
                    progress.note(&words);
                }
            }
        }
        EventKind::BootRetried { reason } => progress.note(&format!("Booting again: {reason}")),
        _ => {}
    }
}
