//! What runs in the VMM that is none: the guest's side of the guest protocol, as a script tells it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        net::{UnixListener, UnixStream},
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use microagent_protocol::{
    ExitStatus, FrameKind, FrameReader, LineReport, ShellFate, ShellLine, ShellOrigin,
    StartFailure,
    exec::ExitReport,
    frame::{write_frame, write_json},
    guest::{GUEST_PROTOCOL, GuestMessage, HostMessage, SessionReply, SessionRequest},
};

use crate::vmm::{STUBBORN, WHOLE, wait_for};

/// Does something as the user that a jailer would have given this VMM. What it may reach stays the same,
/// as the jail's idmapped mounts have it.
fn as_jailed<T>(act: impl FnOnce() -> T) -> T {
    let supervisor = std::os::unix::process::parent_id();
    let user = microagent_hypervisor::jailed_user() - std::process::id() + supervisor;
    // SAFETY: integers. `u32::MAX` leaves an identifier as it is.
    let become_user = |user: u32| unsafe {
        let done = libc::syscall(libc::SYS_setresuid, u32::MAX, user, u32::MAX);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        libc::setfsuid(0)
    };
    become_user(user);
    let done = act();
    become_user(0);
    done
}

/// The VMM's and guest's main.
pub(crate) fn main(arguments: &[String]) -> ! {
    let [script, attempt, uds, console] = arguments else {
        panic!("the VMM was started wrongly: {arguments:?}");
    };
    let script = match script.split_once("-once") {
        Some((what, _)) if attempt == "0" => what,
        Some(_) => "normal",
        None => script,
    };
    HALF_CLOSES.store(script != WHOLE, Ordering::Relaxed);
    let say = |text: &str| {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(console)
            .unwrap();
        writeln!(file, "{text}").unwrap();
    };
    say("the guest boots\u{1b}[2J");
    let _ = std::fs::remove_file(uds);
    let listener = UnixListener::bind(uds).unwrap();
    match script {
        "hang" => loop {
            std::thread::park();
        },
        "die" => std::process::exit(3),
        "panic-early" => {
            say("Kernel panic - not syncing: no init found");
            std::process::exit(0);
        }
        _ => {}
    }
    let connect = || UnixStream::connect(format!("{uds}_1023")).unwrap();
    let link = match script {
        "jailed" => as_jailed(connect),
        _ => connect(),
    };
    let send = |message: &GuestMessage| {
        write_json(&mut &link, FrameKind::Control, message).unwrap();
    };
    if script == "garbage" {
        (&link).write_all(b"\xff\xff\xff\xff\xff garbage").unwrap();
        std::thread::sleep(Duration::from_secs(600));
    }
    if script != "rude" {
        send(&GuestMessage::Hello {
            protocol: GUEST_PROTOCOL,
            kernel_release: "6.1-\u{1b}]test".to_owned(),
            kernel_ms: 1,
        });
        let mut reader = FrameReader::new(link.try_clone().unwrap());
        let configure: HostMessage = reader.require().unwrap().json().unwrap();
        let HostMessage::Configure(config) = configure else {
            panic!("no configuration came first");
        };
        assert_eq!(config.entropy.len(), 128);
        assert_eq!(config.network.unwrap().prefix, 24);
        assert_eq!(config.hostname, "fake");
    }
    if script == "boot-failed" {
        send(&GuestMessage::BootFailed {
            stage: "mount the base disk".to_owned(),
            message: "no such\u{7} device".to_owned(),
        });
        std::process::exit(0);
    }
    if script == "late" {
        let go = Path::new(console).with_file_name("go");
        wait_for(Duration::from_secs(30), || go.exists());
    }
    send(&GuestMessage::Ready { uptime_ms: 2 });
    let control = link.try_clone().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let control = control.try_clone().unwrap();
            std::thread::spawn(move || session(stream.unwrap(), &control));
        }
    });
    if script == "deaf" {
        std::thread::sleep(Duration::from_secs(600));
    }
    let mut reader = FrameReader::new(link.try_clone().unwrap());
    loop {
        let Ok(Some(frame)) = reader.read() else {
            if script == STUBBORN {
                std::thread::sleep(Duration::from_secs(600));
            }
            std::process::exit(0);
        };
        if let HostMessage::Shutdown { .. } = frame.json().unwrap() {
            if script == "slow" {
                // Room for everybody to ask before it is over.
                std::thread::sleep(Duration::from_millis(500));
            }
            send(&GuestMessage::GoingDown {
                requested: true,
                clean: true,
            });
            std::process::exit(0);
        }
    }
}

/// A line of a shell that says what it was told, and ends with it if that is `exit`.
fn shell(
    stream: &mut UnixStream,
    mut reader: FrameReader<UnixStream>,
    line: &ShellLine,
) -> Option<Next> {
    if line.line == "busy" {
        let reply = SessionReply::Failed {
            reason: StartFailure::Guest,
            message: "the shell is busy".to_owned(),
        };
        write_json(stream, FrameKind::Header, &reply).unwrap();
        return None;
    }
    let reply = SessionReply::Line {
        pid: 7,
        shell: ShellOrigin::Restarted,
    };
    write_json(stream, FrameKind::Header, &reply).unwrap();
    write_frame(stream, FrameKind::Stdout, line.line.as_bytes()).unwrap();
    if line.line == "wait" {
        let frame = reader.require().unwrap();
        assert_eq!((frame.kind, frame.payload), (FrameKind::Signal, &[2][..]));
    }
    let report = LineReport {
        exit: ExitReport {
            status: ExitStatus::Exited { code: 3 },
            oom_kills: 0,
        },
        shell: Some(if line.line == "exit" {
            ShellFate::Ended
        } else {
            ShellFate::Kept
        }),
    };
    write_json(stream, FrameKind::Exit, &report).unwrap();
    next(reader)
}

/// Whether this machine's vsock has half-closes.
static HALF_CLOSES: AtomicBool = AtomicBool::new(true);

/// One forwarded connection; the host's loopback is the guest's.
fn forward(mut stream: UnixStream, port: u16, pieces: bool) {
    assert_eq!(pieces, !HALF_CLOSES.load(Ordering::Relaxed));
    let Ok(server) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        let reply = SessionReply::Failed {
            reason: StartFailure::NotFound,
            message: format!("nothing answers at \u{1b}[2J{port}"),
        };
        write_json(&mut stream, FrameKind::Header, &reply).unwrap();
        return;
    };
    write_json(&mut stream, FrameKind::Header, &SessionReply::Opened).unwrap();
    let _ = match pieces {
        true => microagent_relay::join_pieces(&server, &stream),
        false => microagent_relay::join(&stream, &server),
    };
}

/// What the host asks for next, and the stream.
type Next = (SessionRequest, FrameReader<UnixStream>);

/// The next request over a stream; what is meant for a process that has ended is passed over.
fn next(mut reader: FrameReader<UnixStream>) -> Option<Next> {
    loop {
        let frame = reader.read().ok()??;
        if frame.kind == FrameKind::Header {
            let request = frame.json().unwrap();
            return Some((request, reader));
        }
    }
}

/// How many streams there were.
static STREAMS: AtomicU32 = AtomicU32::new(0);

/// The sessions of one stream.
fn session(mut stream: UnixStream, control: &UnixStream) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    assert_eq!(line, b"CONNECT 1024\n");
    stream.write_all(b"OK 1234\n").unwrap();
    STREAMS.fetch_add(1, Ordering::Relaxed);
    let mut wanted = next(FrameReader::new(stream.try_clone().unwrap()));
    while let Some((request, reader)) = wanted {
        let stream = stream.try_clone().unwrap();
        wanted = serve(stream, reader, request, control);
    }
    // A clone may be somebody's still.
    let _ = stream.shutdown(Shutdown::Both);
}

/// One session; gives what comes after it. Processes are the host's.
fn serve(
    mut stream: UnixStream,
    mut reader: FrameReader<UnixStream>,
    request: SessionRequest,
    control: &UnixStream,
) -> Option<Next> {
    let request = match request {
        SessionRequest::Exec(request) => request,
        SessionRequest::Shell(line) => return shell(&mut stream, reader, &line),
        copy @ (SessionRequest::CopyOut(_) | SessionRequest::CopyIn(_)) => {
            crate::copies::guest(stream, copy);
            return None;
        }
        SessionRequest::Forward { port, pieces } => {
            forward(stream, port, pieces);
            return None;
        }
    };
    match request.argv[0].as_str() {
        "violate" => {
            write_json(
                &mut stream,
                FrameKind::Header,
                &SessionReply::Started { pid: 1 },
            )
            .unwrap();
            write_frame(&mut stream, FrameKind::Stdin, b"x").unwrap();
            return None;
        }
        "vanish" => {
            write_json(
                &mut stream,
                FrameKind::Header,
                &SessionReply::Started { pid: 1 },
            )
            .unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
            return None;
        }
        "panic" => {
            let console = std::env::args().nth(5).unwrap();
            std::fs::write(console, "Kernel panic - not syncing: told to\n").unwrap();
            std::process::exit(0);
        }
        "poweroff" => {
            write_json(
                &mut &*control,
                FrameKind::Control,
                &GuestMessage::GoingDown {
                    requested: false,
                    clean: true,
                },
            )
            .unwrap();
            std::process::exit(0);
        }
        "oom" => {
            write_json(
                &mut stream,
                FrameKind::Header,
                &SessionReply::Started { pid: 1 },
            )
            .unwrap();
            let report = ExitReport {
                status: ExitStatus::Signaled { signal: 9 },
                oom_kills: 1,
            };
            write_json(&mut stream, FrameKind::Exit, &report).unwrap();
            return next(reader);
        }
        // Says everything at once, as the agent does of a process that is quick.
        "streams" => {
            let streams = STREAMS.load(Ordering::Relaxed).to_string();
            let report = ExitReport {
                status: ExitStatus::Exited { code: 0 },
                oom_kills: 0,
            };
            let mut bytes = Vec::new();
            let begun = SessionReply::Started { pid: 1 };
            write_json(&mut bytes, FrameKind::Header, &begun).unwrap();
            write_frame(&mut bytes, FrameKind::Stdout, streams.as_bytes()).unwrap();
            write_json(&mut bytes, FrameKind::Exit, &report).unwrap();
            stream.write_all(&bytes).unwrap();
            return next(reader);
        }
        _ => {}
    }
    let program = match request.argv[0].as_str() {
        // The agent ends at once where it is not the first process.
        "/proc/self/exe" => "true",
        other => other,
    };
    let mut command = Command::new(program);
    // SAFETY: the call is async-signal-safe.
    unsafe {
        // What runs in a guest ends with it.
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    let spawned = command
        .args(&request.argv[1..])
        .stdin(if request.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let reply = SessionReply::Failed {
                reason: StartFailure::NotFound,
                message: format!("{}: {error}", request.argv[0]),
            };
            write_json(&mut stream, FrameKind::Header, &reply).unwrap();
            return None;
        }
    };
    let pid = child.id();
    write_json(
        &mut stream,
        FrameKind::Header,
        &SessionReply::Started { pid },
    )
    .unwrap();
    let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let pump = |mut from: Box<dyn Read + Send>, kind| {
        let writer = Arc::clone(&writer);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if write_frame(&mut *writer.lock().unwrap(), kind, &buffer[..count]).is_err() {
                    return;
                }
            }
        })
    };
    let pumps = [
        pump(Box::new(child.stdout.take().unwrap()), FrameKind::Stdout),
        pump(Box::new(child.stderr.take().unwrap()), FrameKind::Stderr),
    ];
    let mut stdin = child.stdin.take();
    let credit = Arc::clone(&writer);
    let input = std::thread::spawn(move || {
        let group = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        while let Ok(Some(frame)) = reader.read() {
            match frame.kind {
                FrameKind::Header => {
                    let request = frame.json().unwrap();
                    return Some((request, reader));
                }
                FrameKind::Stdin => {
                    // A process that has ended takes no more.
                    let _ = stdin.as_mut().unwrap().write_all(frame.payload);
                    let taken = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
                    let _ =
                        write_frame(&mut *credit.lock().unwrap(), FrameKind::StdinCredit, &taken);
                }
                FrameKind::StdinEof => stdin = None,
                FrameKind::Signal => {
                    let signal =
                        rustix::process::Signal::from_named_raw(frame.payload[0].into()).unwrap();
                    let _ = rustix::process::kill_process_group(group, signal);
                }
                _ => {}
            }
        }
        // The host let go of the session.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        None
    });
    let status = child.wait().unwrap();
    for pump in pumps {
        pump.join().unwrap();
    }
    let status = match status.code() {
        Some(code) => ExitStatus::Exited {
            code: u8::try_from(code).unwrap(),
        },
        None => ExitStatus::Signaled {
            signal: u8::try_from(status.signal().unwrap()).unwrap(),
        },
    };
    let report = ExitReport {
        status,
        oom_kills: 0,
    };
    let _ = write_json(&mut *writer.lock().unwrap(), FrameKind::Exit, &report);
    input.join().unwrap()
}
