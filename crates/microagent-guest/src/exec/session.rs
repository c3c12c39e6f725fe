//! One session: read what to run or where to connect, do it or say why not, pump until it ends.

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use microagent_protocol::{
    ExecRequest, ExecRole, FrameKind, FrameReader, ShellLine, ShellStart, StartFailure, TtySize,
    frame::write_json,
    guest::{SessionReply, SessionRequest},
    shell::MAX_LINE,
};
use rustix::{
    event::{PollFd, PollFlags},
    pipe::{PipeFlags, pipe_with},
};

use super::{
    MOST_FORWARDS, Place, Server,
    plan::Plan,
    pump::{self, Process, Pump, Sides},
    shell::{Line, Shell, Turn},
    spawn::{Stdio, null_device, spawn},
    terminal,
};
use crate::{
    bridge, console,
    error::{Context, Error},
    reaper::Workload,
    vsock,
};

/// How long the host may take to say what it wants, or to hear that it cannot have it.
const OPENING_LIMIT: Duration = Duration::from_secs(10);

/// Serves one stream to its end.
pub(super) fn serve(stream: File, place: Place) {
    match try_serve(stream, place) {
        // Hanging up is how the host ends a session it has lost interest in.
        Ok(()) | Err(Error::HostGone) => {}
        // The host knows; this is for whoever reads the console.
        Err(error) => console::say(format_args!("a session failed: {error}")),
    }
}

/// Answers a stream that cannot be served.
pub(crate) fn refuse(mut stream: File, message: &str) {
    let limit = Some(Duration::from_secs(1));
    if vsock::set_timeouts(&stream, limit, limit).is_ok() {
        // If the host does not want to hear it, the end of the stream says it too.
        let _ = reply_failed(&mut stream, StartFailure::Guest, message.to_owned());
    }
}

fn try_serve(stream: File, place: Place) -> Result<(), Error> {
    vsock::set_timeouts(&stream, Some(OPENING_LIMIT), Some(OPENING_LIMIT))
        .context("bound the opening of a session")?;
    let mut reader = FrameReader::new(stream);
    let opening = reader
        .require()
        .and_then(|frame| frame.expect_json(FrameKind::Header, "a session request"));
    let mut stream = reader.into_inner();
    match opening {
        Ok(SessionRequest::Exec(request)) => run(stream, &request, &place.0),
        Ok(SessionRequest::Shell(line)) => run_line(stream, &line, &place.0),
        Ok(SessionRequest::CopyOut(request)) => place.0.copies.pack(&stream, &request),
        Ok(SessionRequest::CopyIn(request)) => place.0.copies.land(&stream, &request),
        Ok(SessionRequest::Forward { port }) => forward(stream, port, place),
        Err(error) => {
            reply_failed(&mut stream, StartFailure::Invalid, error.to_string())?;
            Err(error.into())
        }
    }
}

/// Carries a connection of the host to a server of the guest.
fn forward(mut stream: File, port: u16, place: Place) -> Result<(), Error> {
    let Some(_place) = place.only_forwards() else {
        let message = format!("the guest forwards at most {MOST_FORWARDS} connections at a time");
        return reply_failed(&mut stream, StartFailure::Guest, message);
    };
    let server = match bridge::connect(port) {
        Ok(server) => server,
        Err(error) => {
            let message = format!("nothing answers at the guest's port {port}: {error}");
            return reply_failed(&mut stream, StartFailure::NotFound, message);
        }
    };
    write_json(&mut stream, FrameKind::Header, &SessionReply::Opened)?;
    // A reset of one has become the end of the other; there is nobody to tell.
    let _ = microagent_relay::join(&stream, &server);
    Ok(())
}

/// Runs a process of the session's own.
fn run(mut stream: File, request: &ExecRequest, server: &Server) -> Result<(), Error> {
    let oom_kills = server.oom_kills.watch();
    let (child, sides) = match start(request, server) {
        Ok(started) => started,
        Err(error) => return not_started(&mut stream, &error),
    };
    let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
    let _patience = FullPipes::awaited();
    let process = Process::new(child, &server.processes, oom_kills);
    let (_, pumped) = Pump::new(stream, process, sides).run(&SessionReply::Started { pid });
    pumped
}

/// Runs a line in the persistent shell.
fn run_line(mut stream: File, line: &ShellLine, server: &Server) -> Result<(), Error> {
    let limit = line.turn_limit_ms.map(Duration::from_millis);
    let Some(mut turn) = server.shells.turn(limit) else {
        let message = "the shell is busy with the lines before; wait, or end them".to_owned();
        return reply_failed(&mut stream, StartFailure::Guest, message);
    };
    if has_hung_up(&stream)? {
        return Err(Error::HostGone);
    }
    let begun = begin(&mut turn, line, server);
    let (line, sides, reply) = match begun {
        Ok(begun) => begun,
        Err(error) => return not_started(&mut stream, &error),
    };
    let _patience = FullPipes::awaited();
    let (line, pumped) = Pump::new(stream, line, sides).run(&reply);
    server.shells.finish(&mut turn, line);
    pumped
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

/// Whether the host has lost interest already.
fn has_hung_up(stream: &File) -> Result<bool, Error> {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    pump::wait(&mut fds, Some(Duration::ZERO))?;
    Ok(!fds[0].revents().is_empty())
}

/// Lets a process that writes in small pieces go on instead of preempting it at
/// each, so that a frame carries what has gathered. An idle processor still
/// passes every piece on at once. Must come after the process was started, as
/// it would inherit this; ends when dropped.
struct FullPipes;

impl FullPipes {
    fn awaited() -> Self {
        schedule(libc::SCHED_BATCH);
        Self
    }
}

impl Drop for FullPipes {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER);
    }
}

/// Makes this thread one of `policy`. A kernel that refuses only makes bulk output slower.
fn schedule(policy: i32) {
    // SAFETY: the parameter lives through the call; 0 is the calling thread.
    unsafe {
        let none: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, policy, &raw const none);
    }
}

fn reply_failed(stream: &mut File, reason: StartFailure, message: String) -> Result<(), Error> {
    let reply = SessionReply::Failed { reason, message };
    Ok(write_json(stream, FrameKind::Header, &reply)?)
}

/// Says why nothing was started.
fn not_started(stream: &mut File, error: &Error) -> Result<(), Error> {
    let reason = match error {
        Error::Start { reason, .. } => *reason,
        _ => StartFailure::Guest,
    };
    reply_failed(stream, reason, error.to_string())
}

fn start(request: &ExecRequest, server: &Server) -> Result<(crate::reaper::Child, Sides), Error> {
    let stop_signal = stop_signal(request.stop_signal)?;
    let plan = Plan::new(request, &server.hostname, &server.accounts)?;
    let (stdio, sides) = match request.tty {
        Some(size) => with_terminal(size, plan.identity.uid, request.stdin)?,
        None => with_pipes(request.stdin)?,
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

fn with_pipes(stdin: bool) -> Result<(Stdio, Sides), Error> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context("make a pipe");
    let (input, stdin) = if stdin {
        let (process, agent) = pipe()?;
        (Some(agent), process)
    } else {
        (None, null_device()?)
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
