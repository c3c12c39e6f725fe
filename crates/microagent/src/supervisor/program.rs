//! The one-shot form: start the supervisor program, give it one request, read one response.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Child, ChildStdout, Command as Process, Stdio},
    time::Instant,
};

use microagent_host::{fs::Private, process::readable_by};
use microagent_protocol::{
    LaunchSpec,
    supervisor::{Answer, Command, HostQuery, HostReport, Launched, Request, Response},
};

use crate::{
    config::{Config, SupervisorProgram},
    error::{Error, IoContext, Result},
    files,
};

/// The longest response line accepted, in bytes.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// The signals by which people and terminals end programs: SIGHUP, SIGINT, SIGQUIT and SIGTERM.
#[cfg(unix)]
const ENDING: [u8; 4] = [1, 2, 3, 15];

/// The most bytes of a supervisor's own words that go into an error.
const MAX_LOG: u64 = 4 * 1024;

/// Boots and supervises a machine; the supervisor stays behind.
pub(crate) fn launch(config: &Config, spec: LaunchSpec) -> Result<Launched> {
    let subject = spec.workspace.to_string();
    let log_path = spec.directory.join("supervisor.log");
    let log = File::options()
        .create(true)
        .append(true)
        .private()
        .open(&log_path);
    let log = log.context("open", &log_path)?;
    let request = Request::new(Command::Launch(Box::new(spec)));
    match ask(config, &subject, &request, Stdio::from(log), || {
        tail(&log_path)
    })? {
        Answer::Launched(launched) => Ok(launched),
        other => Err(unexpected(&subject, &other)),
    }
}

/// What this host can run. The supervisor may boot a probe for it.
pub(crate) fn host(config: &Config, query: HostQuery) -> Result<HostReport> {
    const SUBJECT: &str = "the host check";
    let directory = config.host_cache_dir();
    files::private_dir(&directory)?;
    let log_path = directory.join("probe.log");
    let log = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .private()
        .open(&log_path);
    let log = log.context("open", &log_path)?;
    let request = Request::new(Command::Host(query));
    match ask(config, SUBJECT, &request, Stdio::from(log), || {
        tail(&log_path)
    })? {
        Answer::Host(report) => Ok(report),
        other => Err(unexpected(SUBJECT, &other)),
    }
}

fn unexpected(subject: &str, answer: &Answer) -> Error {
    Error::SupervisorFailed {
        subject: subject.to_owned(),
        reason: format!("it gave an answer to another question: {answer:?}"),
        log: None,
    }
}

fn ask(
    config: &Config,
    subject: &str,
    request: &Request,
    stderr: Stdio,
    log: impl Fn() -> Option<String>,
) -> Result<Answer> {
    let start = |source| Error::SupervisorStart {
        program: match &config.supervisor {
            SupervisorProgram::At(path) => path.clone(),
            SupervisorProgram::ThisProgram => "this program".into(),
        },
        source,
    };
    let failed = |reason: String| Error::SupervisorFailed {
        subject: subject.to_owned(),
        reason,
        log: log(),
    };
    let started = supervisor(&config.supervisor)
        .map_err(start)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(start)?;
    let mut child = Reaped(Some(started));
    let Some((mut stdin, mut stdout)) = child.take_pipes() else {
        return Err(failed("it has no pipes".to_owned()));
    };
    let json = serde_json::to_vec(request).map_err(|error| failed(error.to_string()))?;
    // It may answer without reading everything, so a broken pipe is not yet a failure.
    if let Err(error) = stdin.write_all(&json)
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        child.kill();
        return Err(failed(format!("it took no request: {error}")));
    }
    drop(stdin);
    let deadline = Instant::now() + config.timeouts.supervisor;
    let line = match read_line(&mut stdout, deadline) {
        Ok(line) => line,
        Err(error) => {
            child.kill();
            // Ctrl-C reaches every program of a terminal: one that has no session of its own yet, too.
            if error.kind() == io::ErrorKind::UnexpectedEof
                && let Some(signal) = child.asked_to_end()
            {
                return Err(Error::Cancelled { signal });
            }
            return Err(failed(format!("no answer came: {error}")));
        }
    };
    let response: Response = serde_json::from_slice(&line)
        .map_err(|error| failed(format!("its answer is not understood: {error}")))?;
    response
        .into_result()
        .map_err(|report| Error::Supervisor(Box::new(report)))
}

#[cfg(unix)]
fn program_path(program: &SupervisorProgram) -> io::Result<std::path::PathBuf> {
    match program {
        SupervisorProgram::At(path) => Ok(path.clone()),
        // The link stays true when the file is replaced or moved meanwhile.
        SupervisorProgram::ThisProgram if cfg!(target_os = "linux") => Ok("/proc/self/exe".into()),
        SupervisorProgram::ThisProgram => std::env::current_exe(),
    }
}

/// A program is a supervisor by the name it is started by.
#[cfg(unix)]
fn supervisor(program: &SupervisorProgram) -> io::Result<Process> {
    let mut command = Process::new(program_path(program)?);
    std::os::unix::process::CommandExt::arg0(&mut command, crate::config::SUPERVISOR_PROGRAM);
    command.current_dir("/");
    Ok(command)
}

#[cfg(not(unix))]
fn supervisor(_program: &SupervisorProgram) -> io::Result<Process> {
    Err(microagent_host::unsupported("supervising machines"))
}

/// A child that is waited for whatever happens, without holding anybody up.
struct Reaped(Option<Child>);

impl Reaped {
    fn take_pipes(&mut self) -> Option<(std::process::ChildStdin, ChildStdout)> {
        let child = self.0.as_mut()?;
        Some((child.stdin.take()?, child.stdout.take()?))
    }

    fn kill(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
        }
    }

    /// The signal by which people end programs that ended this one. It must be about to end.
    #[cfg(unix)]
    fn asked_to_end(&mut self) -> Option<u8> {
        use std::os::unix::process::ExitStatusExt;

        // Where it cannot be waited for, the other error says enough.
        let status = self.0.as_mut()?.wait().ok()?;
        let signal = u8::try_from(status.signal()?).ok()?;
        ENDING.contains(&signal).then_some(signal)
    }

    #[cfg(not(unix))]
    fn asked_to_end(&mut self) -> Option<u8> {
        None
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        // One that answered and stays is not ours to wait for here; one that ended is reaped.
        if matches!(child.try_wait(), Ok(None)) {
            std::thread::spawn(move || {
                let _ = child.wait();
            });
        }
    }
}

/// Reads up to the first newline or the end, bounded in bytes and time.
fn read_line(stdout: &mut ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0_u8; 8192];
    loop {
        if !readable_by(&*stdout, deadline)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        let count = match stdout.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return if line.is_empty() {
                Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ended without a word",
                ))
            } else {
                Ok(line)
            };
        }
        line.extend_from_slice(&chunk[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > MAX_RESPONSE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its answer has no end",
            ));
        }
    }
}

/// The last words in a log; nothing if it cannot be read, for it only adds to an error.
fn tail(path: &Path) -> Option<String> {
    let mut log = File::open(path).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))
        .ok()?;
    let mut bytes = Vec::new();
    log.take(MAX_LOG).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn program(directory: &Path, script: &str) -> Config {
        let path = directory.join("supervisor");
        testkit::executable(&path, format!("#!/bin/sh\n{script}\n").as_bytes());
        let mut config = Config::new(directory, directory, SupervisorProgram::At(path));
        config.timeouts.supervisor = Duration::from_secs(5);
        config
    }

    fn failure(script: &str) -> Error {
        let directory = tempfile::tempdir().unwrap();
        host(&program(directory.path(), script), HostQuery::default()).unwrap_err()
    }

    #[test]
    fn an_answer_is_read_and_an_error_handed_on() {
        let directory = tempfile::tempdir().unwrap();
        let json = r#"{"protocol":1,"ok":true,"answer":{"type":"host","value":{"os":"linux","architecture":"x86_64","chosen":null,"reason":"none works","checks":[]}}}"#;
        let config = program(directory.path(), &format!("cat >/dev/null; echo '{json}'"));
        let report = host(&config, HostQuery::default()).unwrap();
        assert_eq!(report.reason, "none works");

        let json =
            r#"{"protocol":1,"ok":false,"error":{"kind":"unsupported","message":"no such thing"}}"#;
        let error = failure(&format!("cat >/dev/null; echo '{json}'"));
        assert!(matches!(&error, Error::Supervisor(report) if report.message == "no such thing"));
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let error = failure("echo it broke >&2; exit 3");
        let Error::SupervisorFailed { log, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(log.as_deref(), Some("it broke"));
        let error = failure("cat >/dev/null; echo nonsense");
        assert!(error.to_string().contains("not understood"), "{error}");
    }

    #[test]
    fn a_program_that_ctrl_c_ended_did_not_fail() {
        let error = failure("kill -INT $$");
        assert!(matches!(error, Error::Cancelled { signal: 2 }), "{error}");
        let error = failure("kill -SEGV $$");
        assert!(matches!(error, Error::SupervisorFailed { .. }), "{error}");
    }

    #[test]
    fn a_program_that_never_answers_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = program(directory.path(), "exec sleep 1000");
        config.timeouts.supervisor = Duration::from_millis(200);
        let error = host(&config, HostQuery::default()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let config = Config::new("/", "/", SupervisorProgram::At("/no/such/program".into()));
        let error = host(&config, HostQuery::default()).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
