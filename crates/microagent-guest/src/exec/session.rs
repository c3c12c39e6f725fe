//! One session: read what to run or where to connect, do it or say why not, pump until it ends.

use std::{fs::File, os::fd::OwnedFd, sync::Arc, time::Duration};

use microagent_protocol::{
    ExecRequest, ExecRole, FrameKind, ShellLine, ShellStart, StartFailure, TtySize,
    guest::{SessionReply, SessionRequest},
    shell::MAX_LINE,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{
    MOST_FORWARDS, MOST_SESSIONS, Place, Server,
    host::Host,
    plan::Plan,
    pump::{Process, Pump, Sides},
    shell::{Line, Shell, Turn},
    spawn::{Stdio, spawn},
    terminal,
};
use crate::{
    bridge, console,
    error::{Context, Error},
    reaper::Workload,
};

/// Serves a stream to its end.
pub(super) fn serve(stream: File, server: &Arc<Server>) {
    match try_serve(stream, server) {
        // Hanging up is how the host ends a session it has lost interest in.
        Ok(()) | Err(Error::HostGone) => {}
        // The host knows; this is for whoever reads the console.
        Err(error) => console::say(format_args!("a session failed: {error}")),
    }
}

fn try_serve(stream: File, server: &Arc<Server>) -> Result<(), Error> {
    let mut next = Some(Host::new(stream)?);
    while let Some(mut host) = next {
        let request = match host.request() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(Error::HostGone) => return Err(Error::HostGone),
            Err(error) => {
                reply_failed(&mut host, StartFailure::Invalid, error.to_string())?;
                return Err(error);
            }
        };
        let Some(place) = Place::take(server) else {
            let message = format!("the guest serves at most {MOST_SESSIONS} sessions at a time");
            return reply_failed(&mut host, StartFailure::Guest, message);
        };
        next = match request {
            SessionRequest::Exec(request) => run(host, &request, server)?,
            SessionRequest::Shell(line) => run_line(host, &line, server)?,
            SessionRequest::CopyOut(request) => {
                return server.copies.pack(&host.into_blocking()?, &request);
            }
            SessionRequest::CopyIn(request) => {
                return server.copies.land(&host.into_blocking()?, &request);
            }
            SessionRequest::Forward { port, pieces } => return forward(host, port, pieces, place),
        };
    }
    Ok(())
}

/// Carries a connection of the host to a server of the guest.
fn forward(mut host: Host, port: u16, pieces: bool, place: Place) -> Result<(), Error> {
    let Some(_place) = place.only_forwards() else {
        let message = format!("the guest forwards at most {MOST_FORWARDS} connections at a time");
        return reply_failed(&mut host, StartFailure::Guest, message);
    };
    let server = match bridge::connect(port) {
        Ok(server) => server,
        Err(error) => {
            let message = format!("nothing answers at the guest's port {port}: {error}");
            return reply_failed(&mut host, StartFailure::NotFound, message);
        }
    };
    host.reply(&SessionReply::Opened)?;
    let stream = host.into_blocking()?;
    // A reset of one has become the end of the other; there is nobody to tell.
    let _ = match pieces {
        true => microagent_relay::join_pieces(&server, &stream),
        false => microagent_relay::join(&stream, &server),
    };
    Ok(())
}

/// Runs a process of the session's own.
fn run(host: Host, request: &ExecRequest, server: &Server) -> Result<Option<Host>, Error> {
    let oom_kills = server.oom_kills.watch();
    let (child, sides) = match start(request, server) {
        Ok(started) => started,
        Err(error) => return not_started(host, &error),
    };
    let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
    let process = Process::new(child, &server.processes, oom_kills);
    let (process, pumped) = Pump::new(host, process, sides).run(&SessionReply::Started { pid });
    process.bury();
    pumped.map(Some)
}

/// Runs a line in the persistent shell.
fn run_line(mut host: Host, line: &ShellLine, server: &Server) -> Result<Option<Host>, Error> {
    let limit = line.turn_limit_ms.map(Duration::from_millis);
    let Some(mut turn) = server.shells.turn(limit) else {
        let message = "the shell is busy with the lines before; wait, or end them".to_owned();
        reply_failed(&mut host, StartFailure::Guest, message)?;
        return Ok(None);
    };
    if host.has_hung_up()? {
        return Err(Error::HostGone);
    }
    let begun = begin(&mut turn, line, server);
    let (line, sides, reply) = match begun {
        Ok(begun) => begun,
        Err(error) => return not_started(host, &error),
    };
    let (line, pumped) = Pump::new(host, line, sides).run(&reply);
    server.shells.finish(&mut turn, line);
    pumped.map(Some)
}

fn begin<'a>(
    turn: &mut Turn<'_, Option<Shell>>,
    line: &ShellLine,
    server: &'a Server,
) -> Result<(Line<'a>, Sides, SessionReply), Error> {
    let bad = |why: &str| Error::start(StartFailure::Invalid, format!("the line {why}"));
    if line.line.contains('\0') {
        return Err(bad("has a NUL byte"));
    }
    if line.line.len() > MAX_LINE {
        return Err(bad(&format!("has more than {MAX_LINE} bytes")));
    }
    let (shell, origin) = server.shells.ready(turn, &line.shell, |number, base| {
        let plan = Plan::new(
            &shell_request(&line.shell),
            &server.hostname,
            &server.accounts,
        )?;
        let uid = plan.identity.uid;
        Shell::start(&line.shell.program, (number, base), uid, |stdio| {
            spawn(&plan, &stdio, server.group(), &server.processes)
        })
    })?;
    let reply = SessionReply::Line {
        pid: shell.pid(),
        shell: origin,
    };
    let line = shell.begin(&line.line, &server.processes, server.oom_kills.watch())?;
    let sides = line.sides()?;
    Ok((line, sides, reply))
}

/// The shell as a process like any other.
fn shell_request(shell: &ShellStart) -> ExecRequest {
    ExecRequest {
        role: ExecRole::Command,
        argv: vec![shell.program.clone(), "-s".to_owned()],
        env: shell.env.clone(),
        cwd: shell.cwd.clone(),
        user: shell.user.clone(),
        tty: None,
        stdin: true,
        stop_signal: None,
    }
}

fn reply_failed(host: &mut Host, reason: StartFailure, message: String) -> Result<(), Error> {
    host.reply(&SessionReply::Failed { reason, message })
}

/// Says why nothing was started.
fn not_started(mut host: Host, error: &Error) -> Result<Option<Host>, Error> {
    let reason = match error {
        Error::Start { reason, .. } => *reason,
        _ => StartFailure::Guest,
    };
    reply_failed(&mut host, reason, error.to_string())?;
    // Whoever asks again asks anew.
    Ok(None)
}

fn start(request: &ExecRequest, server: &Server) -> Result<(crate::reaper::Child, Sides), Error> {
    let stop_signal = stop_signal(request.stop_signal)?;
    let plan = Plan::new(request, &server.hostname, &server.accounts)?;
    let (stdio, sides) = match request.tty {
        Some(size) => with_terminal(size, plan.identity.uid, request.stdin)?,
        None => with_pipes(request.stdin, &server.null)?,
    };
    let child = spawn(&plan, &stdio, server.group(), &server.processes)?;
    if request.role == ExecRole::Workload {
        let child = child.clone();
        server
            .processes
            .set_workload(Workload { child, stop_signal });
    }
    Ok((child, sides))
}

fn stop_signal(number: Option<u8>) -> Result<i32, Error> {
    match number {
        None => Ok(libc::SIGTERM),
        Some(number @ 1..=64) => Ok(number.into()),
        Some(number) => Err(Error::start(
            StartFailure::Invalid,
            format!("{number} is no signal; use 1 to 64"),
        )),
    }
}

fn with_terminal(size: TtySize, uid: u32, stdin: bool) -> Result<(Stdio, Sides), Error> {
    let (agent, stdio) = terminal::open(size, uid)?;
    let share = |fd: &OwnedFd| fd.try_clone().context("share the terminal");
    let sides = Sides {
        input: if stdin { Some(share(&agent)?) } else { None },
        outputs: vec![(FrameKind::Stdout, share(&agent)?)],
        terminal: Some((agent, share(&stdio.streams[0])?)),
    };
    Ok((stdio, sides))
}

fn with_pipes(stdin: bool, null: &OwnedFd) -> Result<(Stdio, Sides), Error> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context("make a pipe");
    let (input, stdin) = if stdin {
        let (process, agent) = pipe()?;
        (Some(agent), process)
    } else {
        (None, null.try_clone().context("share /dev/null")?)
    };
    let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
    let sides = Sides {
        input,
        outputs: vec![(FrameKind::Stdout, stdout), (FrameKind::Stderr, stderr)],
        terminal: None,
    };
    Ok((
        Stdio {
            streams: [stdin, stdout_end, stderr_end],
            terminal: false,
        },
        sides,
    ))
}
