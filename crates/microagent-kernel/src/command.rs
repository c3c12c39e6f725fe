//! Runs the package manager's programs: no shell, bounded in time and output, nothing on the terminal.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{KernelError, Result};

/// Most bytes read from each of the program's streams; more is thrown away.
const MAX_OUTPUT: u64 = 4 * 1024 * 1024;
/// How much of the standard error goes into a message.
const MAX_MESSAGE: usize = 2000;

/// Runs `program` in `directory` and returns its standard output.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    directory: &Path,
    timeout: Duration,
    remedy: &'static str,
) -> Result<String> {
    let deadline = Instant::now() + timeout;
    let unavailable = |source| KernelError::ToolUnavailable {
        program: program.to_owned(),
        source,
        remedy,
    };
    let shown = || {
        let words = arguments
            .iter()
            .map(|argument| argument.as_ref().to_string_lossy().into_owned());
        std::iter::once(program.to_owned())
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own group, so that the helpers it starts end with it.
        .process_group(0)
        .spawn()
        .map_err(unavailable)?;
    let output = drain(child.stdout.take());
    let errors = drain(child.stderr.take());
    let received = |stream: mpsc::Receiver<Vec<u8>>| {
        stream.recv_timeout(deadline.saturating_duration_since(Instant::now()))
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
fn drain<R: Read + Send + 'static>(stream: Option<R>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A stream that breaks has ended; the exit status tells whether that matters.
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        // Fails only if the caller gave up waiting.
        let _ = sender.send(bytes);
    });
    receiver
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
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Already gone is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
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
