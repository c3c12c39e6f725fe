//! Runs the package manager's programs: no shell, bounded in time and output, nothing on the terminal.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use microagent_host::process::{in_own_group, kill_group};

use crate::error::{KernelError, Result};

/// Most bytes read from each of the program's streams; more is thrown away.
const MAX_OUTPUT: u64 = 4 * 1024 * 1024;
/// How much of the standard error goes into a message.
const MAX_MESSAGE: usize = 2000;

/// How often a program that is watched is looked at.
const WATCH: Duration = Duration::from_millis(500);

/// Runs `program` in `directory` and returns its standard output.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    directory: &Path,
    timeout: Duration,
    remedy: &'static str,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    run_watched(command, timeout, remedy, &mut |_| {})
}

/// As [`run`], and tells `watch` now and then how many lines the program has written.
pub(crate) fn run_watched(
    mut command: Command,
    timeout: Duration,
    remedy: &'static str,
    watch: &mut dyn FnMut(usize),
) -> Result<String> {
    let deadline = Instant::now() + timeout;
    let program = command.get_program().to_string_lossy().into_owned();
    let unavailable = |source| KernelError::ToolUnavailable {
        program: program.clone(),
        source,
        remedy,
    };
    let words: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let shown = || {
        std::iter::once(program.as_str())
            .chain(words.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    };
    command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Its own group, so that the helpers it starts end with it.
    let mut child = in_own_group(&mut command).spawn().map_err(unavailable)?;
    let lines = Arc::new(AtomicUsize::new(0));
    let output = drain(child.stdout.take(), Arc::clone(&lines));
    let errors = drain(child.stderr.take(), Arc::default());
    let mut seen = 0;
    let mut received = |stream: mpsc::Receiver<Vec<u8>>| loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match stream.recv_timeout(left.min(WATCH)) {
            Err(mpsc::RecvTimeoutError::Timeout) if !left.is_zero() => {
                let now = lines.load(Ordering::Relaxed);
                if now != seen {
                    seen = now;
                    watch(now);
                }
            }
            other => return other,
        }
    };
    let finished = received(output).ok().zip(received(errors).ok());
    let status = finished
        .is_some()
        .then(|| wait_until(&mut child, deadline))
        .flatten();
    let (Some((output, errors)), Some(status)) = (finished, status) else {
        end(&mut child);
        return Err(KernelError::ToolTimedOut {
            program: shown(),
            after: timeout,
        });
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    let errors = String::from_utf8_lossy(&errors);
    let skipped = errors.trim().chars().count().saturating_sub(MAX_MESSAGE);
    Err(KernelError::ToolFailed {
        program: shown(),
        status: status.to_string(),
        stderr: errors.trim().chars().skip(skipped).collect(),
    })
}

/// Reads a stream to its end on a thread of its own, so that neither stream can block the other.
fn drain<R: Read + Send + 'static>(
    stream: Option<R>,
    lines: Arc<AtomicUsize>,
) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            let mut stream = Counted { stream, lines };
            // A stream that breaks has ended; the exit status tells whether that matters.
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        // Fails only if the caller gave up waiting.
        let _ = sender.send(bytes);
    });
    receiver
}

/// A stream whose lines are counted as they are read.
struct Counted<R> {
    stream: R,
    lines: Arc<AtomicUsize>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream.read(buffer)?;
        let ends = buffer
            .iter()
            .take(length)
            .filter(|byte| **byte == b'\n')
            .count();
        self.lines.fetch_add(ends, Ordering::Relaxed);
        Ok(length)
    }
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn end(child: &mut Child) {
    // Already gone is as good.
    let _ = kill_group(child.id());
    // Reaps it; SIGKILL cannot be refused, and an error means there is nothing to reap.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_here(program: &str, arguments: &[&str], timeout: Duration) -> Result<String> {
        run(program, arguments, Path::new("/"), timeout, "Install it.")
    }

    #[test]
    fn output_and_failure_come_back() {
        let minute = Duration::from_secs(60);
        assert_eq!(run_here("echo", &["a  b"], minute).unwrap(), "a  b\n");
        let error = run_here("ls", &["/no/such/file"], minute).unwrap_err();
        assert!(
            matches!(&error, KernelError::ToolFailed { stderr, .. } if stderr.contains("/no/such/file")),
            "{error}"
        );
        let error = run_here("microagent-no-such-program", &[], minute)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("microagent-no-such-program") && error.ends_with("Install it."),
            "{error}"
        );
    }

    #[test]
    fn more_output_than_is_kept_does_not_block() {
        let size = (2 * MAX_OUTPUT).to_string();
        let output = run_here(
            "head",
            &["--bytes", &size, "/dev/zero"],
            Duration::from_secs(60),
        )
        .unwrap();
        assert_eq!(output.len() as u64, MAX_OUTPUT);
    }

    #[test]
    fn lines_are_told_while_a_program_runs() {
        let mut command = Command::new("sh");
        // It goes on only after the first was told, or the deadline ends it.
        let directory = tempfile::tempdir().unwrap();
        let seen = directory.path().join("seen");
        command
            .args(["-c", "echo one; while ! [ -e seen ]; do sleep 0.05; done"])
            .current_dir(directory.path());
        let mut told = Vec::new();
        run_watched(command, Duration::from_secs(60), "", &mut |lines| {
            told.push(lines);
            std::fs::write(&seen, "").unwrap();
        })
        .unwrap();
        assert_eq!(told, [1]);
    }

    #[test]
    fn what_takes_too_long_is_ended_with_its_children() {
        let start = Instant::now();
        // The grandchild keeps the pipes open: only killing the group ends the wait.
        let error = run_here(
            "sh",
            &["-c", "sleep 300 & wait"],
            Duration::from_millis(100),
        )
        .unwrap_err();
        assert!(matches!(error, KernelError::ToolTimedOut { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
