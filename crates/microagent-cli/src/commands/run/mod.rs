//! `microagent run`.

mod args;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    process::ExitCode,
    sync::Arc,
};

use microagent::{
    Backend, EXIT_FAILED, EndCause, Error, Event, EventKind, Microagent, RunController, RunEvent,
    RunIo, RunResult,
};

use rustix::event::{PollFd, PollFlags, poll};

pub(crate) use self::args::RunArgs;
use crate::{
    cli::{EXIT_USAGE, Form, Globals},
    output::Screen,
    progress::Progress,
    signals, surroundings,
    terminal::{self, RawMode},
};

pub(crate) fn run(args: RunArgs, globals: &Globals, screen: &Screen) -> ExitCode {
    if args.wants_tty() && !terminal::is_terminal(args.wants_stdin()) {
        let report = Error::Invalid {
            option: "--tty",
            reason: "standard input and output are not a terminal; leave -t out in a pipe"
                .to_owned(),
        };
        screen.error(&report.report());
        return ExitCode::from(EXIT_USAGE);
    }
    if args.wants_tty() && screen.form == Form::Json {
        let reason =
            "a terminal's output does not go into JSON; leave one of the two out".to_owned();
        screen.error(
            &Error::Invalid {
                option: "--tty",
                reason,
            }
            .report(),
        );
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
            io.stdin(TerminalInput { input, controller })
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

/// The stream without a buffer of ours: what the guest writes goes out at once, byte for byte.
fn unbuffered(stream: impl AsFd) -> Result<Unbuffered, Error> {
    let copy = stream
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::Io {
            doing: "use",
            path: "a standard stream".into(),
            source,
        })?;
    Ok(Unbuffered(File::from(copy)))
}

/// A standard stream, read and written directly.
struct Unbuffered(File);

impl Read for Unbuffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(&self.0, PollFlags::IN)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Somebody else made the shared terminal or pipe non-blocking: wait, lose nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(&self.0, PollFlags::OUT)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal as input: it has no end but a hang-up, and the command hears of that as it would
/// from a terminal of its own.
struct TerminalInput {
    input: Unbuffered,
    controller: RunController,
}

impl Read for TerminalInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer);
        if !matches!(read, Ok(1..)) {
            self.controller.signal(signals::HANG_UP);
        }
        read
    }
}

fn wait_for(file: &File, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, what)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
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
