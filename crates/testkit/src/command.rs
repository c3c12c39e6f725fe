//! Running microagent and looking at what it did.

use std::{
    ffi::OsString,
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use crate::Terminal;

/// How long any one command of a test may take.
const LIMIT: Duration = Duration::from_secs(180);

/// A microagent command about to be started.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdin: Vec<u8>,
}

impl Invocation {
    pub(crate) fn new(program: &Path, state: &Path, runtime: &Path, marker: &str) -> Self {
        let mut command = Command::new(program);
        // Nothing of the developer's own settings may reach a test.
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", runtime)
            .env("XDG_RUNTIME_DIR", runtime)
            .env("MICROAGENT_HOME", state)
            .env("MICROAGENT_TEST_ID", marker);
        Self {
            command,
            stdin: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Adds arguments whose number is not known beforehand.
    #[must_use]
    pub fn words<S: AsRef<str>>(mut self, words: &[S]) -> Self {
        self.command.args(words.iter().map(AsRef::as_ref));
        self
    }

    /// Adds one argument that need not be UTF-8.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    /// Sets a variable of the command's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in `directory`.
    #[must_use]
    pub fn inside(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// The same where there is no network: in a namespace of its own, whose loopback is not even up.
    #[must_use]
    pub fn without_network(self) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--net", "--"])
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .env_clear();
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        if let Some(directory) = self.command.get_current_dir() {
            command.current_dir(directory);
        }
        Self {
            command,
            stdin: self.stdin,
        }
    }

    /// Asks for JSON.
    #[must_use]
    pub fn json(self) -> Self {
        self.env("MICROAGENT_OUTPUT", "json")
    }

    /// Sends `bytes` to standard input, then its end.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(self) -> Finished {
        let input = self.stdin.clone();
        let mut running = self.start();
        if let Some(mut stdin) = running.stdin.take() {
            // A command that does not read its input closes it early, which is its right.
            let _writer = std::thread::spawn(move || stdin.write_all(&input));
        }
        running.finish()
    }

    /// Starts it; its standard input stays open.
    #[must_use]
    pub fn start(mut self) -> Running {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Reaped(self.command.spawn().expect("microagent starts"));
        let stdout = Collector::new(child.0.stdout.take().expect("a pipe"));
        let stderr = Collector::new(child.0.stderr.take().expect("a pipe"));
        let stdin = child.0.stdin.take();
        let witness = Witness {
            command: words(&self.command),
            stdout: stdout.bytes.clone(),
            stderr: stderr.bytes.clone(),
        };
        Running {
            child,
            witness,
            stdin,
            stdout,
            stderr,
            started: Instant::now(),
        }
    }

    /// Starts it on a terminal of `rows` and `cols`.
    #[must_use]
    pub fn on_terminal(self, rows: u16, cols: u16) -> Terminal {
        Terminal::start(self.command, rows, cols)
    }
}

/// One output stream, collected as it comes.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn new(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let sink = bytes.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let count @ 1.. = stream.read(&mut buffer).expect("the command's output") {
                sink.lock()
                    .expect("the output")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        so_far(&self.bytes)
    }

    fn finish(self) -> Vec<u8> {
        self.thread.join().expect("the collector");
        std::mem::take(&mut self.bytes.lock().expect("the output"))
    }
}

fn so_far(bytes: &Mutex<Vec<u8>>) -> Vec<u8> {
    bytes.lock().expect("the output").clone()
}

/// Tells what a command said that was still running when its test failed.
#[derive(Debug)]
struct Witness {
    command: String,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{self}");
        }
    }
}

impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "-- {}\n-- stdout so far\n{}\n-- stderr so far\n{}",
            self.command,
            head(&so_far(&self.stdout)),
            head(&so_far(&self.stderr))
        )
    }
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(std::ffi::OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// As much of an output as is shown.
fn head(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned()
}

/// A child that a failing test does not leave behind.
#[derive(Debug)]
pub(crate) struct Reaped(pub(crate) Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Killing fails only if it ended already.
        if self.0.kill().is_ok() {
            let _ended = self.0.wait();
        }
    }
}

/// A microagent command that runs.
#[derive(Debug)]
pub struct Running {
    child: Reaped,
    witness: Witness,
    /// Its standard input, while it is open.
    pub stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    started: Instant,
}

impl Running {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn output_so_far(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// Waits until it wrote this to standard error; panics if that takes minutes.
    pub fn says(&self, words: &str) {
        crate::eventually(LIMIT, words, || {
            let said = self.stderr.so_far();
            String::from_utf8_lossy(&said).contains(words).then_some(())
        });
    }

    /// Asks `done` again and again, while the command runs, until it gives something; panics with
    /// what the command said once it has ended, or after `limit`.
    pub fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut() -> Result<T, String>,
    ) -> T {
        loop {
            let last = match done() {
                Ok(value) => return value,
                Err(why) => why,
            };
            if let Some(status) = self.child.0.try_wait().expect("the command's end") {
                panic!("{what} did not happen, as the command ended: {status}; last: {last}");
            }
            let waited = self.started.elapsed();
            assert!(
                waited < limit,
                "{what} did not happen within {limit:?} of the command's start; last: {last}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.0);
        kill_process(pid, signal).expect("the command still runs");
    }

    /// Waits for its end; panics if that takes minutes.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let status = loop {
            if let Some(status) = self.child.0.try_wait().expect("the command's end") {
                break status;
            }
            if self.started.elapsed() > LIMIT {
                self.child.0.kill().expect("the command can be killed");
                panic!("the command took more than {LIMIT:?}\n{}", self.witness);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Finished {
            status,
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            took: self.started.elapsed(),
        }
    }
}

/// A microagent command that ended.
#[derive(Debug)]
pub struct Finished {
    status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Its exit code; panics if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {self}"))
    }

    /// Whether a signal ended it.
    #[must_use]
    pub fn was_signaled(&self) -> bool {
        self.status.code().is_none()
    }

    /// Panics unless it exited with 0.
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Panics unless it exited with `code`.
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Whether it left a core dump.
    #[must_use]
    pub fn core_dumped(&self) -> bool {
        std::os::unix::process::ExitStatusExt::core_dumped(&self.status)
    }

    /// Its standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Its standard output as one JSON document.
    #[must_use]
    pub fn parsed(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// The SHA-256 of its standard output, in hexadecimal.
    #[must_use]
    pub fn out_sha256(&self) -> String {
        sha256(&self.stdout)
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n-- stdout\n{}\n-- stderr\n{}",
            self.status,
            head(&self.stdout),
            head(&self.stderr)
        )
    }
}

/// Runs a tool; fails the test with the package to install where it is missing.
pub fn tool(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {program}: {error}; install the package {package}")
        });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}",
        output.status
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let nowhere = Path::new("/nonexistent");
        Invocation::new(Path::new("/bin/sh"), nowhere, nowhere, "none")
            .args(["-c", script])
            .start()
    }

    /// What a test would fail with.
    fn failure(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(test).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    }

    #[test]
    fn waiting_for_a_commands_work_tells_of_its_end_and_of_the_last_try() {
        let limit = Duration::from_secs(60);
        let seen = shell("echo up; exec sleep 60").until(limit, "the word", || Ok::<_, String>(7));
        assert_eq!(seen, 7);
        let ended = failure(move || {
            shell("exit 3").until(limit, "the word", || Err::<(), _>("no answer".to_owned()));
        });
        assert!(
            ended.contains("exit status: 3") && ended.contains("no answer"),
            "{ended}"
        );
        let late = failure(|| {
            let limit = Duration::from_millis(50);
            shell("exec sleep 60").until(limit, "the word", || Err::<(), _>("not yet".to_owned()));
        });
        assert!(
            late.contains("within 50ms") && late.contains("not yet"),
            "{late}"
        );
    }

    #[test]
    fn what_a_command_said_is_told_with_its_words() {
        let running = shell("echo one; echo two >&2; exec sleep 60");
        running.says("two");
        let told = running.witness.to_string();
        assert!(
            told.contains("/bin/sh -c echo one") && told.contains("stderr so far\ntwo"),
            "{told}"
        );
    }
}
