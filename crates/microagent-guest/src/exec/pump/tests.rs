//! The pump between a real process and a socket pair.

use std::{
    io::Read as _,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::Instant,
};

use microagent_protocol::{ExitStatus, FrameReader, exec::ExitReport, frame::STDIN_WINDOW};
use rustix::process::Pid;

use super::*;
use crate::{exec::oom::OomCounter, reaper::Processes};

/// The reaper takes every child of the test program, so one test at a time.
pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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
            let oom_kills = OomCounter::open();
            let process = Process::new(child, &processes, oom_kills.watch());
            let host = Host::new(stream).unwrap();
            let pump = Pump::new(host, process, sides.unwrap());
            pump.run(&SessionReply::Started { pid: 1 }).1.map(drop)
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
                    write_frame(&mut writer, FrameKind::Stdin, &vec![7; part as usize]).unwrap();
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
