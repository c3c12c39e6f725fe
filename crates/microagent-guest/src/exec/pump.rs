//! The pump of one session: bytes between a stream and a process, in one poll
//! loop with bounded buffers. What cannot be passed on is not read, so the
//! process waits for the host and never fills the guest's memory.

use std::{collections::VecDeque, fs::File, os::fd::OwnedFd, time::Duration};

use microagent_protocol::{
    ExitStatus, Frame, FrameError, FrameKind, TtySize,
    exec::ExitReport,
    frame::{HEADER, MAX_DATA, STDIN_WINDOW, encode_header, write_frame, write_json},
    guest::SessionReply,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, read, write},
    pipe::fcntl_getpipe_size,
};

use super::terminal;
use crate::{
    error::{Context, Error},
    reaper::{Child, Processes},
    vsock,
};

/// The most output of one frame: with its header it fills one packet of a
/// virtio socket, where a byte more would cost another.
const MOST_OUTPUT: usize = MAX_DATA - HEADER;
/// What a terminal may hold of a process that has ended.
const TERMINAL_BUFFER: usize = 128 * 1024;
/// Credit is given in parts of this size, or when everything was taken.
const CREDIT_STEP: u32 = STDIN_WINDOW / 4;
/// How long a process may take to end after the host hung up.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Sides {
    /// Where standard input is written, if it is streamed.
    pub(crate) input: Option<OwnedFd>,
    /// Where output is read, by the kind of frame it becomes.
    pub(crate) outputs: Vec<(FrameKind, OwnedFd)>,
    /// The terminal's both ends. The process's end is kept open so that the
    /// terminal outlives a process that closes and reopens it.
    pub(crate) terminal: Option<(OwnedFd, OwnedFd)>,
}

/// One session in progress.
pub(crate) struct Pump<'a> {
    stream: File,
    child: Child,
    processes: &'a Processes,
    terminal: Option<(OwnedFd, OwnedFd)>,
    incoming: Vec<u8>,
    outgoing: Outgoing,
    input: Input,
    outputs: Vec<Output>,
    exited: bool,
}

impl<'a> Pump<'a> {
    /// Between `stream` and `child`.
    pub(crate) fn new(stream: File, child: Child, sides: Sides, processes: &'a Processes) -> Self {
        let outputs = sides.outputs.into_iter();
        Self {
            stream,
            child,
            processes,
            terminal: sides.terminal,
            incoming: Vec::new(),
            outgoing: Outgoing::default(),
            input: Input {
                fd: sides.input,
                ..Input::default()
            },
            outputs: outputs
                .map(|(kind, fd)| Output {
                    kind,
                    fd: Some(fd),
                    left: None,
                })
                .collect(),
            exited: false,
        }
    }

    /// Sends `reply`, pumps until the process has ended, and sends what
    /// `report` makes of its status. If the host hangs up before, the process
    /// and its group are ended.
    pub(crate) fn run(
        mut self,
        reply: &SessionReply,
        report: impl FnOnce(&ExitStatus) -> ExitReport,
    ) -> Result<(), Error> {
        let result = self.pump(reply, report);
        if result.is_err() && !self.exited {
            self.hang_up();
        }
        result
    }

    fn pump(
        &mut self,
        reply: &SessionReply,
        report: impl FnOnce(&ExitStatus) -> ExitReport,
    ) -> Result<(), Error> {
        self.prepare()?;
        write_json(&mut self.outgoing.bytes, FrameKind::Header, reply)?;
        loop {
            self.outgoing.flush(&self.stream)?;
            if self.outgoing.is_empty() && self.input.credit_due() {
                let credit = std::mem::take(&mut self.input.taken).to_be_bytes();
                write_frame(&mut self.outgoing.bytes, FrameKind::StdinCredit, &credit)?;
                continue;
            }
            if self.outgoing.is_empty()
                && self.exited
                && self.outputs.iter().all(|output| output.fd.is_none())
            {
                break;
            }
            self.step()?;
        }
        if let Some(status) = self.child.exit.status() {
            write_json(&mut self.outgoing.bytes, FrameKind::Exit, &report(status))?;
        }
        while !self.outgoing.is_empty() {
            wait(&mut [PollFd::new(&self.stream, PollFlags::OUT)], None)?;
            self.outgoing.flush(&self.stream)?;
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(), Error> {
        vsock::set_timeouts(&self.stream, None, None).context("unbound the session")?;
        ioctl_fionbio(&self.stream, true).context("unblock the session")?;
        let fds = self.outputs.iter().filter_map(|output| output.fd.as_ref());
        for fd in fds.chain(&self.input.fd) {
            ioctl_fionbio(fd, true).context("unblock a stream")?;
        }
        Ok(())
    }

    /// Waits until something can go on, and lets it.
    fn step(&mut self) -> Result<(), Error> {
        let ready = self.wait()?;
        if ready.exited {
            self.note_exit();
        }
        if ready.input {
            self.input.feed();
        }
        for index in 0..self.outputs.len() {
            let output = &mut self.outputs[index];
            if self.outgoing.is_empty() && (self.exited || ready.outputs & (1 << index) != 0) {
                output.read_into(&mut self.outgoing)?;
                self.outgoing.flush(&self.stream)?;
            }
        }
        if ready.stream {
            self.receive()?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready, Error> {
        let writing = !self.outgoing.is_empty();
        let draining = self.exited && !writing;
        let mut fds = Vec::with_capacity(5);
        let stream_events = if writing {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        fds.push(PollFd::new(&self.stream, stream_events));
        let exit = (!self.exited).then(|| {
            fds.push(PollFd::from_borrowed_fd(
                self.child.exit.event(),
                PollFlags::IN,
            ));
            fds.len() - 1
        });
        let input = self
            .input
            .fd
            .as_ref()
            .filter(|_| self.input.wants_to_write())
            .map(|fd| {
                fds.push(PollFd::new(fd, PollFlags::OUT));
                fds.len() - 1
            });
        let first_output = fds.len();
        let mut indices = Vec::with_capacity(2);
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(fd) = output.fd.as_ref().filter(|_| !writing && !draining) {
                fds.push(PollFd::new(fd, PollFlags::IN));
                indices.push(index);
            }
        }
        wait(&mut fds, draining.then_some(Duration::ZERO))?;
        let happened = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready {
            stream: fds[0]
                .revents()
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            exited: exit.is_some_and(happened),
            input: input.is_some_and(happened),
            outputs: indices
                .iter()
                .enumerate()
                .filter(|(place, _)| happened(first_output + place))
                .fold(0, |set, (_, index)| set | 1 << index),
        })
    }

    /// From now on only what is in the pipes already counts: a child left
    /// behind may hold them open, or write, for ever.
    fn note_exit(&mut self) {
        self.exited = true;
        self.input.close();
        for output in &mut self.outputs {
            let held = output
                .fd
                .as_ref()
                .and_then(|fd| fcntl_getpipe_size(fd).ok());
            output.left = Some(held.unwrap_or(TERMINAL_BUFFER));
        }
    }

    fn receive(&mut self) -> Result<(), Error> {
        let start = self.incoming.len();
        self.incoming.resize(start + HEADER + MAX_DATA, 0);
        let result = read(&self.stream, &mut self.incoming[start..]);
        self.incoming.truncate(start + result.unwrap_or(0));
        match result {
            Ok(0) => return Err(Error::HostGone),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
            Err(error) => return Err(FrameError::Io(error.into()).into()),
        }
        let buffer = std::mem::take(&mut self.incoming);
        let mut rest = &buffer[..];
        while let Some((frame, after)) = Frame::split(rest)? {
            self.obey(frame)?;
            rest = after;
        }
        let consumed = buffer.len() - rest.len();
        self.incoming = buffer;
        self.incoming.drain(..consumed);
        if self.incoming.len() > HEADER + MAX_DATA {
            // Only a JSON frame can be that long, and none is due.
            return Err(FrameError::Truncated.into());
        }
        self.input.feed();
        Ok(())
    }

    fn obey(&mut self, frame: Frame<'_>) -> Result<(), Error> {
        match frame.kind {
            FrameKind::Stdin => self.input.take(frame.payload)?,
            FrameKind::StdinEof => self
                .input
                .end(self.terminal.as_ref().map(|(agent, _)| agent)),
            FrameKind::Signal => {
                if let [number @ 1..=64] = frame.payload {
                    self.processes.signal(&self.child, (*number).into());
                }
            }
            FrameKind::Resize => {
                if let (Some(size), Some((agent, _))) =
                    (TtySize::from_bytes(frame.payload), &self.terminal)
                {
                    terminal::resize(agent, size)?;
                }
            }
            got => {
                let wanted = "input, a signal or a size";
                return Err(FrameError::Unexpected { got, wanted }.into());
            }
        }
        Ok(())
    }

    /// Nobody is listening any more: as a terminal does, and then for sure.
    fn hang_up(&mut self) {
        self.input.close();
        self.outputs.clear();
        self.terminal = None;
        for (signal, limit) in [(libc::SIGHUP, HANGUP_GRACE), (libc::SIGKILL, KILL_LIMIT)] {
            self.processes.signal(&self.child, signal);
            let event = PollFd::from_borrowed_fd(self.child.exit.event(), PollFlags::IN);
            // A failure to wait only makes it end sooner.
            let _ = wait(&mut [event], Some(limit));
            if self.child.exit.status().is_some() {
                return;
            }
        }
    }
}

/// What can go on.
struct Ready {
    stream: bool,
    exited: bool,
    input: bool,
    /// One bit for each output.
    outputs: u32,
}

fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<(), Error> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("wait for a session"),
    }
}

/// Bytes on their way to the host: at most one data frame.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what the stream takes.
    fn flush(&mut self, stream: &File) -> Result<(), Error> {
        while self.sent < self.bytes.len() {
            match write(stream, &self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::HostGone),
                Err(error) => return Err(FrameError::Io(error.into()).into()),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Standard output or error.
struct Output {
    kind: FrameKind,
    /// Gone at its end.
    fd: Option<OwnedFd>,
    /// After the process's end, how many bytes may still be its own.
    left: Option<usize>,
}

impl Output {
    /// Reads what is there, as one frame. `outgoing` must be empty.
    fn read_into(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        let Some(fd) = &self.fd else {
            return Ok(());
        };
        let most = self.left.unwrap_or(MOST_OUTPUT).min(MOST_OUTPUT);
        outgoing.bytes.resize(HEADER + most, 0);
        let result = if most == 0 {
            Ok(0)
        } else {
            read(fd, &mut outgoing.bytes[HEADER..])
        };
        let count = result.unwrap_or(0);
        outgoing
            .bytes
            .truncate(if count == 0 { 0 } else { HEADER + count });
        match result {
            Ok(count) if count > 0 => {
                outgoing.bytes[..HEADER].copy_from_slice(&encode_header(self.kind, count)?);
                self.left = self.left.map(|left| left - count);
            }
            Err(Errno::INTR) => {}
            // A process that runs may write more; of one that has ended this was all.
            Err(Errno::AGAIN) if self.left.is_none() => {}
            // The end, or (a terminal says so by EIO) nobody left to write.
            _ => self.fd = None,
        }
        Ok(())
    }
}

/// Standard input, on its way to the process.
#[derive(Default)]
struct Input {
    /// Gone when it is closed, or was never there.
    fd: Option<OwnedFd>,
    queue: VecDeque<u8>,
    /// Bytes taken since credit was given.
    taken: u32,
    /// The last byte that was taken in.
    last: Option<u8>,
    ended: bool,
    /// Whether it is a terminal, which stays open after the end of input.
    is_terminal: bool,
}

impl Input {
    /// Takes bytes of the host in.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.fd.is_none() || self.ended {
            // Nobody reads it, but the host must not wait.
            self.taken = self.taken.saturating_add(bytes.len() as u32);
            return Ok(());
        }
        if self.queue.len() + bytes.len() > STDIN_WINDOW as usize {
            return Err(Error::Malformed {
                what: "the standard input".to_owned(),
                why: format!("more than {STDIN_WINDOW} bytes came ahead of credit"),
            });
        }
        self.queue.extend(bytes);
        self.last = bytes.last().copied().or(self.last);
        Ok(())
    }

    /// The host has no more.
    fn end(&mut self, terminal: Option<&OwnedFd>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(terminal) = terminal.filter(|_| self.fd.is_some()) {
            self.queue
                .extend(terminal::end_of_input(terminal, self.last));
        } else if self.queue.is_empty() {
            self.fd = None;
        }
        self.is_terminal = terminal.is_some();
    }

    fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    fn credit_due(&self) -> bool {
        self.taken >= CREDIT_STEP || (self.taken > 0 && self.queue.is_empty())
    }

    /// Gives the process what it takes.
    fn feed(&mut self) {
        while let (Some(fd), (bytes, _)) = (&self.fd, self.queue.as_slices()) {
            if bytes.is_empty() {
                break;
            }
            match write(fd, bytes) {
                Ok(count) => {
                    self.queue.drain(..count);
                    self.taken = self.taken.saturating_add(count as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It does not read any more.
                Err(_) => self.close(),
            }
        }
        if self.ended && !self.is_terminal {
            self.fd = None;
        }
    }

    /// Nobody reads it any more: whatever comes is taken and dropped.
    fn close(&mut self) {
        self.fd = None;
        self.taken = self.taken.saturating_add(self.queue.len() as u32);
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt as _},
        process::{Command, Stdio},
        sync::Mutex,
        thread,
        time::Instant,
    };

    use microagent_protocol::FrameReader;
    use rustix::process::Pid;

    use super::*;

    /// The reaper takes every child of the test program, so one test at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Runs a shell script below a pump and hands the host's side to `host`.
    fn with_script<T>(
        script: &str,
        host: impl FnOnce(&mut UnixStream, &mut FrameReader<UnixStream>) -> T,
    ) -> T {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let processes = Processes::default();
        let mut sides = None;
        let child = processes
            .start(|| {
                let mut child = Command::new("/bin/sh")
                    .args(["-c", script])
                    .process_group(0)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .context("start the shell")?;
                sides = Some(Sides {
                    input: child.stdin.take().map(OwnedFd::from),
                    outputs: vec![
                        (FrameKind::Stdout, child.stdout.take().unwrap().into()),
                        (FrameKind::Stderr, child.stderr.take().unwrap().into()),
                    ],
                    terminal: None,
                });
                Ok(Pid::from_raw(child.id() as i32).unwrap())
            })
            .unwrap();
        let (agent, mut client) = UnixStream::pair().unwrap();
        let mut reader = FrameReader::new(client.try_clone().unwrap());
        let ended = child.exit.clone();
        thread::scope(|scope| {
            let session = scope.spawn(|| {
                let stream = File::from(OwnedFd::from(agent));
                let pump = Pump::new(stream, child, sides.unwrap(), &processes);
                pump.run(&SessionReply::Started { pid: 1 }, |status| ExitReport {
                    status: status.clone(),
                    oom_kills: 0,
                })
            });
            let reaper = scope.spawn(|| {
                while ended.status().is_none() {
                    processes.reap();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            assert_eq!(reader.require().unwrap().kind, FrameKind::Header);
            let result = host(&mut client, &mut reader);
            drop((client, reader));
            // A host that hung up makes the session fail; both must end.
            let _ = session.join().unwrap();
            reaper.join().unwrap();
            result
        })
    }

    #[derive(Debug, Default)]
    struct Seen {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        credit: u32,
        status: Option<ExitStatus>,
    }

    /// Everything up to the exit frame, which must be the last.
    fn read_all(reader: &mut FrameReader<UnixStream>) -> Seen {
        let mut seen = Seen::default();
        while let Some(frame) = reader.read().unwrap() {
            assert!(seen.status.is_none(), "{frame:?} after the exit");
            match frame.kind {
                FrameKind::Stdout => seen.stdout.extend(frame.payload),
                FrameKind::Stderr => seen.stderr.extend(frame.payload),
                FrameKind::StdinCredit => seen.credit += frame.as_u32().unwrap(),
                FrameKind::Exit => seen.status = Some(frame.json::<ExitReport>().unwrap().status),
                other => panic!("{other:?}"),
            }
        }
        seen
    }

    #[test]
    fn streams_are_apart_and_complete_and_the_exit_comes_last() {
        let seen = with_script(
            "head -c 3000000 /dev/zero; echo oops >&2; exit 42",
            |_, reader| read_all(reader),
        );
        assert_eq!(seen.stdout, vec![0; 3_000_000]);
        assert_eq!(seen.stderr, b"oops\n");
        assert_eq!(seen.status, Some(ExitStatus::Exited { code: 42 }));
    }

    #[test]
    fn input_flows_by_credit_and_ends() {
        let total = 2_000_000_u32;
        let seen = with_script("cat", |client, reader| {
            let mut writer = client.try_clone().unwrap();
            let (credit, credits) = std::sync::mpsc::channel::<u32>();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let (mut allowed, mut sent) = (STDIN_WINDOW, 0);
                    while sent < total {
                        let part = allowed.min(total - sent).min(MAX_DATA as u32);
                        if part == 0 {
                            allowed += credits.recv().unwrap();
                            continue;
                        }
                        write_frame(&mut writer, FrameKind::Stdin, &vec![7; part as usize])
                            .unwrap();
                        (allowed, sent) = (allowed - part, sent + part);
                    }
                    write_frame(&mut writer, FrameKind::StdinEof, &[]).unwrap();
                });
                let mut seen = Seen::default();
                while let Some(frame) = reader.read().unwrap() {
                    match frame.kind {
                        FrameKind::Stdout => seen.stdout.extend(frame.payload),
                        FrameKind::StdinCredit => {
                            seen.credit += frame.as_u32().unwrap();
                            // The writer may have sent everything already.
                            let _ = credit.send(frame.as_u32().unwrap());
                        }
                        FrameKind::Exit => break,
                        other => panic!("{other:?}"),
                    }
                }
                seen
            })
        });
        assert_eq!(seen.stdout, vec![7; total as usize]);
        assert!(
            seen.credit <= total && seen.credit > total - STDIN_WINDOW,
            "{}",
            seen.credit
        );
    }

    #[test]
    fn a_child_left_behind_does_not_hold_the_exit() {
        let start = Instant::now();
        let seen = with_script("sleep 20 & echo last; exit 3", |_, reader| read_all(reader));
        assert_eq!(seen.stdout, b"last\n");
        assert_eq!(seen.status, Some(ExitStatus::Exited { code: 3 }));
        let seen = with_script("yes & exit 4", |_, reader| read_all(reader));
        assert_eq!(seen.status, Some(ExitStatus::Exited { code: 4 }));
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn unread_input_does_not_block_a_signal() {
        let seen = with_script("sleep 20", |client, reader| {
            for _ in 0..STDIN_WINDOW as usize / MAX_DATA {
                write_frame(client, FrameKind::Stdin, &[1; MAX_DATA]).unwrap();
            }
            write_frame(client, FrameKind::Signal, &[libc::SIGKILL as u8]).unwrap();
            read_all(reader)
        });
        assert_eq!(
            seen.status,
            Some(ExitStatus::Signaled {
                signal: libc::SIGKILL as u8
            })
        );
    }

    #[test]
    fn a_host_that_hangs_up_or_breaks_the_rules_ends_the_process() {
        // The helper returns only when the process has ended.
        let start = Instant::now();
        with_script("sleep 20", |_, _| ());
        with_script("sleep 20", |client, reader| {
            write_frame(client, FrameKind::Request, b"{}").unwrap();
            while reader.read().is_ok_and(|frame| frame.is_some()) {}
        });
        with_script("sleep 20", |client, reader| {
            // More than the pipe and the window hold together.
            for _ in 0..2 * STDIN_WINDOW as usize / MAX_DATA {
                // It may have hung up before the last one.
                let _ = write_frame(client, FrameKind::Stdin, &[1; MAX_DATA]);
            }
            let mut rest = Vec::new();
            // The end of the stream, clean or not, is what is waited for.
            let _ = reader.get_ref().read_to_end(&mut rest);
        });
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_stalled_host_stalls_the_process_instead_of_filling_memory() {
        with_script("head -c 50000000 /dev/zero; echo done >&2", |_, reader| {
            let resident = || {
                let status = std::fs::read_to_string("/proc/self/statm").unwrap();
                status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
            };
            let before = resident();
            thread::sleep(Duration::from_millis(300));
            assert!(resident() < before + 24 * 1024 * 1024);
            let seen = read_all(reader);
            assert_eq!(
                (seen.stdout.len(), &seen.stderr[..]),
                (50_000_000, &b"done\n"[..])
            );
        });
    }
}
