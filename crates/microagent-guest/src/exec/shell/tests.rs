//! Real shells of the host, driven as the guest's is.

use std::{
    fs::File,
    os::unix::{net::UnixStream, process::CommandExt as _},
    process::Command,
    sync::{
        MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::{
    ExitStatus, FrameKind, FrameReader, LineReport, ShellFate, ShellOrigin, ShellStart,
    frame::write_frame, guest::SessionReply,
};
use rustix::process::Pid;

use super::*;
use crate::{
    error::Context,
    exec::{
        host::Host,
        oom::OomCounter,
        pump::{Pump, tests::ONE_AT_A_TIME},
    },
    reaper::Processes,
};

/// The shells there are in images.
const SHELLS: [&[&str]; 4] = [
    &["dash"],
    &["bash"],
    &["bash", "--posix"],
    &["busybox", "ash"],
];

struct Guest {
    argv: &'static [&'static str],
    shells: Shells,
    processes: Processes,
    oom_kills: OomCounter,
    stop: AtomicBool,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// What a line brought.
#[derive(Debug)]
struct Seen {
    origin: ShellOrigin,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    report: LineReport,
}

impl Seen {
    fn code(&self) -> u8 {
        assert_eq!(self.report.shell, Some(ShellFate::Kept), "{self:?}");
        self.report.exit.status.code()
    }

    fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Guest {
    /// Does `test` with each kind of shell.
    fn each(test: impl Fn(&Self)) {
        for argv in SHELLS {
            println!("-- {argv:?}");
            Self::with(argv, &test);
        }
    }

    fn with(argv: &'static [&'static str], test: impl Fn(&Self)) {
        let directory = tempfile::tempdir().unwrap();
        let guest = Self {
            argv,
            shells: Shells::new(directory.path()),
            processes: Processes::default(),
            oom_kills: OomCounter::open(),
            stop: AtomicBool::new(false),
            directory,
            _alone: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner),
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !guest.stop.load(Ordering::Acquire) {
                    guest.processes.reap();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let _stop = Stop(&guest.stop);
            test(&guest);
            // Whatever the test left: the group of the shell ends with it.
            if let Some(shell) = &*guest.shells.turn(None).unwrap() {
                guest.processes.signal(shell.child(), libc::SIGKILL);
            }
        });
    }

    /// One line from beginning to end, with this signal once it has written `words`.
    fn send_and_signal(&self, text: &str, mut signal: Option<(&str, u8)>) -> Seen {
        let (agent, client) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let session = scope.spawn(move || self.serve(agent, text));
            let mut writer = client.try_clone().unwrap();
            let mut reader = FrameReader::new(client);
            let reply = reader.require().unwrap().json().unwrap();
            let SessionReply::Line { shell: origin, .. } = reply else {
                panic!("{reply:?}");
            };
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let report = loop {
                let frame = reader.require().unwrap();
                match frame.kind {
                    FrameKind::Stdout => stdout.extend(frame.payload),
                    FrameKind::Stderr => stderr.extend(frame.payload),
                    FrameKind::Exit => break frame.json().unwrap(),
                    other => panic!("{other:?}"),
                }
                if let Some((_, number)) =
                    signal.take_if(|(words, _)| stdout.starts_with(words.as_bytes()))
                {
                    write_frame(&mut writer, FrameKind::Signal, &[number]).unwrap();
                }
            };
            session.join().unwrap().unwrap();
            Seen {
                origin,
                stdout,
                stderr,
                report,
            }
        })
    }

    fn send(&self, text: &str) -> Seen {
        self.send_and_signal(text, None)
    }

    /// What the session's thread does in the guest.
    fn serve(&self, stream: UnixStream, text: &str) -> Result<(), Error> {
        let stream = File::from(std::os::fd::OwnedFd::from(stream));
        let wanted = ShellStart {
            program: self.argv[0].to_owned(),
            env: Vec::new(),
            cwd: None,
            user: None,
        };
        let uid = rustix::process::geteuid().as_raw();
        let mut turn = self.shells.turn(None).unwrap();
        let (shell, origin) = self.shells.ready(&mut turn, &wanted, |number, base| {
            Shell::start(&wanted.program, (number, base), uid, |stdio| {
                self.processes.start(|| {
                    let [input, output, errors] = stdio.streams;
                    let child = Command::new(self.argv[0])
                        .args(&self.argv[1..])
                        .arg("-s")
                        .process_group(0)
                        .stdin(input)
                        .stdout(output)
                        .stderr(errors)
                        .spawn()
                        .context("start the shell")?;
                    Ok(Pid::from_raw(child.id().cast_signed()).unwrap())
                })
            })
        })?;
        let reply = SessionReply::Line {
            pid: shell.pid(),
            shell: origin,
        };
        let line = shell.begin(text, &self.processes, self.oom_kills.watch())?;
        let sides = line.sides()?;
        let (line, pumped) = Pump::new(Host::new(stream)?, line, sides).run(&reply);
        self.shells.finish(&mut turn, line);
        pumped.map(drop)
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn what_a_line_sets_is_there_for_the_next() {
    Guest::each(|guest| {
        let first = guest.send("cd /tmp; X='a  b'; f() { echo \"f $X\"; }; set -- 1 2 3");
        assert_eq!((first.code(), first.origin), (0, ShellOrigin::Started));
        let second = guest.send("f; pwd; echo $#");
        assert_eq!(second.out(), "f a  b\n/tmp\n3\n");
        assert_eq!(second.origin, ShellOrigin::Running);
        assert_eq!(guest.send("(exit 7)").code(), 7);
        assert_eq!(guest.send("echo $?").out(), "7\n");
        assert_eq!(guest.send("echo $?").out(), "0\n");
        assert_eq!(guest.send("return 5").code(), 5);
        assert_eq!(guest.send("exec 3</etc/passwd; IFS=01").code(), 0);
        assert_eq!(guest.send("read -r first <&3; (exit 101)").code(), 101);
        assert_eq!(guest.send("echo ${first%%:*}").out(), "root\n");
    });
}

#[test]
fn output_is_exact_and_apart_whatever_it_is() {
    Guest::each(|guest| {
        let seen = guest.send("printf 'no newline'; printf 'err\\n\\377' >&2");
        assert_eq!(seen.out(), "no newline");
        assert_eq!(seen.stderr, b"err\n\xff");
        let tricky = "DONE $? echo \"$?\" >/x 7.end __MARK__";
        let seen = guest.send(&format!("echo '{tricky}'; echo '{tricky}' >&2"));
        assert_eq!(seen.out(), format!("{tricky}\n"));
        assert_eq!(seen.stderr, seen.stdout);
        let seen = guest.send("head -c 3000000 /dev/zero; echo end >&2; false");
        assert_eq!((seen.stdout.len(), seen.code()), (3_000_000, 1));
        assert_eq!(seen.stderr, b"end\n");
        assert!(guest.send("").stdout.is_empty());
        let lines = guest.send("cat <<E\n$((1 + 1))\nE\necho two");
        assert_eq!(lines.out(), "2\ntwo\n");
        // There is nothing to read, and what is read is not what comes next.
        assert_eq!(guest.send("cat; read -r x; echo $?").out(), "1\n");
    });
}

#[test]
fn a_mistake_does_not_end_the_shell() {
    Guest::each(|guest| {
        guest.send("keep=1");
        for bad in ["if", "echo 'open", ". /no/such/file", "readonly R=1; R=2"] {
            let seen = guest.send(bad);
            assert_ne!(seen.code(), 0, "{bad}");
            assert!(!seen.stderr.is_empty(), "{bad}");
        }
        for odd in [
            "break",
            "continue",
            "exec >/dev/null",
            "set -x; :",
            "set +x",
        ] {
            assert_eq!(guest.send(odd).code(), 0, "{odd}");
        }
        assert_eq!(
            guest
                .send("alias echo='printf wrong' command=false; echo() { printf over; }; exec 9>&1")
                .code(),
            0
        );
        guest.send("\\unset -f echo; \\unalias echo command");
        let seen = guest.send("echo $keep");
        assert_eq!((seen.out(), seen.origin), ("1\n", ShellOrigin::Running));
    });
}

#[test]
fn an_end_of_the_shell_is_told_and_the_next_line_starts_another() {
    Guest::each(|guest| {
        for (number, (line, status)) in [
            ("echo bye; exit 3", ExitStatus::Exited { code: 3 }),
            ("kill -9 $$", ExitStatus::Signaled { signal: 9 }),
            (
                "exec sh -c 'echo bye; exit 4'",
                ExitStatus::Exited { code: 4 },
            ),
            ("set -e; X=1; false", ExitStatus::Exited { code: 1 }),
        ]
        .into_iter()
        .enumerate()
        {
            let seen = guest.send(line);
            assert_eq!(seen.report.shell, Some(ShellFate::Ended), "{line}");
            assert_eq!(seen.report.exit.status, status, "{line}");
            assert_eq!(seen.out(), if line.contains("bye") { "bye\n" } else { "" });
            let expected = [ShellOrigin::Started, ShellOrigin::Restarted][number.min(1)];
            assert_eq!(seen.origin, expected);
        }
        let seen = guest.send("echo ${X-unset}; kill -9 $$ &");
        assert_eq!(seen.out(), "unset\n");
        // It ends between two lines now.
        let start = Instant::now();
        while guest
            .shells
            .turn(None)
            .unwrap()
            .as_ref()
            .unwrap()
            .is_alive()
        {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(guest.send("echo new").origin, ShellOrigin::Restarted);
        let left = std::fs::read_dir(guest.directory.path()).unwrap().count();
        assert_eq!(left, 1, "only the present shell has a directory");
    });
}

#[test]
fn background_jobs_live_on_and_what_they_write_later_is_dropped() {
    Guest::each(|guest| {
        let seen = guest.send(
            "{ echo early; sleep 0.3; echo late; echo alive >/tmp/$$; sleep 60; } & echo job $!",
        );
        let mut words = seen.out().split_whitespace();
        let pid = words.find(|word| *word == "job").and(words.next()).unwrap();
        let start = Instant::now();
        while guest.send("test -e /tmp/$$").code() != 0 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(10));
        }
        let seen = guest.send("rm /tmp/$$; jobs");
        assert!(seen.out().contains("unning"), "{seen:?}");
        assert!(!seen.out().lines().any(|line| line == "late"));
        assert_eq!(guest.send(&format!("kill {pid}")).code(), 0);
        // Nor does it block for want of a reader.
        let job = "until test -e /tmp/$$.go; do sleep 0.02; done; head -c 500000 /dev/zero";
        let seen = guest.send(&format!("{{ {job}; echo x >/tmp/$$; }} & :"));
        assert_eq!(seen.stdout.len(), 0);
        assert_eq!(guest.send("echo >/tmp/$$.go").code(), 0);
        while guest.send("test -e /tmp/$$").code() != 0 {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(10));
        }
        assert!(guest.send("rm /tmp/$$ /tmp/$$.go").stdout.is_empty());
    });
}

#[test]
fn an_interrupted_line_is_over_and_the_shell_is_not() {
    Guest::each(|guest| {
        guest.send("X=kept");
        for line in [
            "echo begun; sleep 30; echo not reached",
            "echo begun; while sleep 0.05; do :; done",
            "echo begun; (sleep 30; echo no); sleep 30 | cat; x=$(sleep 30)",
        ] {
            let start = Instant::now();
            let seen = guest.send_and_signal(line, Some(("begun\n", 15)));
            assert_eq!((seen.out(), seen.code()), ("begun\n", 130), "{line}");
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        let seen = guest.send("echo $X $?; sleep 30 &");
        assert_eq!(
            (seen.out(), seen.origin),
            ("kept 130\n", ShellOrigin::Running)
        );
    });
}

#[test]
fn a_shell_that_does_not_come_back_is_killed() {
    Guest::with(&["dash"], |guest| {
        let line = "trap '' INT; echo first; sleep 60";
        let seen = guest.send_and_signal(line, Some(("first\n", 2)));
        assert_eq!(seen.report.shell, Some(ShellFate::Killed));
        assert_eq!(seen.report.exit.status, ExitStatus::Signaled { signal: 9 });
        assert_eq!(seen.out(), "first\n");
        assert_eq!(guest.send("echo second").origin, ShellOrigin::Restarted);
    });
}

#[test]
fn a_host_that_hangs_up_ends_its_line_and_no_other() {
    Guest::with(&["dash"], |guest| {
        guest.send("X=kept");
        let (agent, client) = UnixStream::pair().unwrap();
        let start = Instant::now();
        thread::scope(|scope| {
            let session = scope.spawn(|| guest.serve(agent, "echo begun; sleep 30"));
            let mut reader = FrameReader::new(client);
            while reader.require().unwrap().kind != FrameKind::Stdout {}
            drop(reader);
            assert!(session.join().unwrap().is_err());
        });
        assert!(start.elapsed() < Duration::from_secs(20));
        let seen = guest.send("echo $X");
        assert_eq!((seen.out(), seen.origin), ("kept\n", ShellOrigin::Running));
    });
}

#[test]
fn lines_wait_for_each_other() {
    Guest::with(&["dash"], |guest| {
        guest.send("count=0");
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| guest.send("n=$count; sleep 0.02; count=$((n + 1))"));
            }
        });
        assert_eq!(guest.send("echo $count").out(), "10\n");
    });
}

#[test]
fn what_is_no_shell_is_no_deadlock() {
    Guest::with(&["true"], |guest| {
        let seen = guest.send("echo x");
        assert_eq!(seen.report.shell, Some(ShellFate::Ended));
        assert_eq!(seen.report.exit.status.code(), 0);
    });
    Guest::with(&["dash"], |guest| {
        let shell = ShellStart {
            program: "/bin/other".to_owned(),
            env: Vec::new(),
            cwd: None,
            user: None,
        };
        guest.send(":");
        let turn = guest.shells.turn(None).unwrap();
        let error = turn.as_ref().unwrap().check(&shell).unwrap_err();
        assert!(error.to_string().contains("dash"), "{error}");
    });
}
