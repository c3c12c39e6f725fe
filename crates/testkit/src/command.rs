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
        Running {
            child,
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
        self.bytes.lock().expect("the output").clone()
    }

    fn finish(self) -> Vec<u8> {
        self.thread.join().expect("the collector");
        std::mem::take(&mut self.bytes.lock().expect("the output"))
    }
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
                let stderr = self.stderr.finish();
                panic!(
                    "the command took more than {LIMIT:?}; stderr: {}",
                    String::from_utf8_lossy(&stderr)
                );
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
        let head =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        write!(
            f,
            "{}\n-- stdout\n{}\n-- stderr\n{}",
            self.status,
            head(&self.stdout),
            head(&self.stderr)
        )
    }
}
