//! The one-shot form: one request on standard input, one answer on standard output.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::PathBuf,
    time::Instant,
};

use microagent_host::lock::Lock;
use microagent_protocol::{
    LaunchSpec,
    frame::MAX_JSON,
    supervisor::{Answer, Command, ErrorKind, ErrorReport, Request, Response},
};
use serde_json::value::RawValue;

use crate::{
    Error,
    backend::Backends,
    control,
    events::HISTORY,
    files, launch,
    launch::Supervisor,
    log, process,
    process::{Judge, Side, Verdict},
    wiring::Wiring,
};

/// Answers the request on standard input. Gives the exit code.
pub(crate) fn run(backends: &dyn Backends) -> i32 {
    let started = Instant::now();
    process::close_inherited();
    let response = match request() {
        Err(response) => *response,
        Ok(request) => {
            let id = request.id;
            let outcome = match request.command {
                Command::Host(query) => backends.host(&query).map(Answer::Host),
                Command::Check(spec) => check(&spec, backends),
                Command::Launch(spec) => return start(&id, *spec, backends, started),
                Command::Inspect
                | Command::Subscribe { .. }
                | Command::Exec(_)
                | Command::Shell(_)
                | Command::Console
                | Command::CopyOut(_)
                | Command::CopyIn(_)
                | Command::Halt { .. }
                | Command::Stop { .. }
                | Command::Kill
                | Command::Condemn { .. }
                | Command::Pause
                | Command::Resume
                | Command::Quarantine
                | Command::Rebind { .. }
                | Command::Stats => Err(ErrorReport::new(
                    ErrorKind::Invalid,
                    "only host, check and launch are asked on standard input",
                )
                .remedy("Ask the workspace's supervisor at its control socket.")),
            };
            Response::new(id, outcome)
        }
    };
    i32::from(!(answer(&mut io::stdout(), &response) && response.ok))
}

/// Reads one JSON value and no further: whoever asks need not close the stream.
fn request() -> Result<Request, Box<Response>> {
    let input = BufReader::new(io::stdin().take(MAX_JSON as u64 + 1));
    let json: Box<RawValue> = serde_json::Deserializer::from_reader(input)
        .into_iter()
        .next()
        .unwrap_or_else(|| Err(serde::de::Error::custom("there is none")))
        .map_err(|error| {
            Box::new(Response::new(
                "",
                Err(ErrorReport::new(
                    ErrorKind::Invalid,
                    format!("the request on standard input is not understood: {error}"),
                )),
            ))
        })?;
    control::parse(json.get().as_bytes())
}

fn check(spec: &LaunchSpec, backends: &dyn Backends) -> Result<Answer, ErrorReport> {
    launch::validate(spec).map_err(|error| error.report())?;
    // What it takes is given back at once.
    Wiring::prepare(spec).map_err(|error| error.report())?;
    let chosen = backends.choose(spec)?;
    Ok(Answer::Accepted(chosen.hypervisor.backend()))
}

/// Gives whether the answer was taken.
fn answer(output: &mut impl Write, response: &Response) -> bool {
    let Ok(mut line) = serde_json::to_vec(response) else {
        return false;
    };
    line.push(b'\n');
    output
        .write_all(&line)
        .and_then(|()| output.flush())
        .is_ok()
}

fn start(id: &str, spec: LaunchSpec, backends: &dyn Backends, started: Instant) -> i32 {
    let refuse = |error: &Error| {
        answer(&mut io::stdout(), &Response::new(id, Err(error.report())));
        1
    };
    if let Err(error) = launch::validate(&spec) {
        return refuse(&error);
    }
    let anew_for = process::anew_for();
    if anew_for.is_none() && backends.begin_anew() {
        return match anew(id, spec) {
            // Else it was told already, by whoever began.
            Ok(verdict) => i32::from(!verdict.wait()),
            Err(error) => refuse(&error),
        };
    }
    // Taken before the fork: the parent is still the launching process.
    let launcher = spec.owned.then(|| process::launcher(anew_for));
    let launcher = match launcher.transpose() {
        Ok(launcher) => launcher,
        Err(error) => return refuse(&error),
    };
    let side = match anew_for {
        Some(_) => process::judge().map(Side::Supervisor),
        None => process::detach(),
    };
    match side {
        Err(error) => refuse(&error),
        Ok(Side::Launched(verdict)) => i32::from(!verdict.wait()),
        Ok(Side::Supervisor(judge)) => {
            let logged = || -> Result<(File, Lock), Error> {
                let output = process::take_stdout()?;
                let lock = files::lock_machine(&spec.directory)?;
                let path = spec.directory.join("supervisor.log");
                process::redirect_stdio(&path)?;
                let log = log::open(&path).map_err(Error::file("open", &path))?;
                log::start(log, spec.log.clone());
                Ok((output, lock))
            };
            match logged() {
                Ok((output, lock)) => supervise(
                    id,
                    spec,
                    backends,
                    launcher,
                    started,
                    Telling {
                        output,
                        judge,
                        lock,
                    },
                ),
                Err(error) => {
                    let code = refuse(&error);
                    judge.tell(false);
                    code
                }
            }
        }
    }
}

/// The same launch by the same program, begun anew.
fn anew(id: &str, spec: LaunchSpec) -> Result<Verdict, Error> {
    let mut request = Request::new(Command::Launch(Box::new(spec)));
    id.clone_into(&mut request.id);
    let request = serde_json::to_vec(&request)
        .map_err(|error| Error::system("write the request down")(error.into()))?;
    process::begin_anew(&request)
}

/// Removes an ephemeral machine's two directories, which an owner that is gone
/// cannot do any more.
fn clear_away(ephemeral: Option<(PathBuf, PathBuf)>) {
    let Some((directory, runtime_dir)) = ephemeral else {
        return;
    };
    // The history first: what is left of the rest, if this is killed, says that it may go.
    let history = directory.join(HISTORY);
    if let Err(error) = std::fs::remove_file(&history)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", history.display());
    }
    if let Err(error) = std::fs::remove_dir_all(&directory) {
        tracing::warn!("cannot remove {}: {error}", directory.display());
    }
    if let Some(parent) = runtime_dir.parent() {
        // Only the last machine finds it empty.
        let _ = std::fs::remove_dir(parent);
    }
}

/// What a supervisor has in hand while somebody waits for its answer.
struct Telling {
    output: File,
    judge: Judge,
    /// That a machine of this workspace runs.
    lock: Lock,
}

fn supervise(
    id: &str,
    spec: LaunchSpec,
    backends: &dyn Backends,
    launcher: Option<std::os::fd::OwnedFd>,
    started: Instant,
    telling: Telling,
) -> i32 {
    let Telling {
        mut output,
        judge,
        lock,
    } = telling;
    let owned = spec.owned;
    let ephemeral = spec
        .ephemeral
        .then(|| (spec.directory.clone(), spec.runtime_dir.clone()));
    // A port that is taken is known before a host is probed for the first time.
    let runtime_dir = spec.runtime_dir.clone();
    let prepared = launch::make_place(&runtime_dir)
        .and_then(|()| Wiring::prepare(&spec))
        .and_then(|wiring| {
            let chosen = backends
                .choose(&spec)
                .map_err(|report| Error::Backend(Box::new(report)))?;
            Supervisor::prepare(spec, chosen, wiring, launcher, started)
        })
        .and_then(|supervisor| {
            launch::heed_signals(supervisor.outbox())?;
            Ok(supervisor)
        });
    match prepared {
        Ok(supervisor) => {
            let launched = Answer::Launched(supervisor.launched().clone());
            let heard = answer(&mut output, &Response::new(id, Ok(launched)));
            drop(output);
            judge.tell(heard);
            if !heard && owned {
                tracing::warn!("whoever launched this machine did not wait for the answer");
                drop(supervisor);
                clear_away(ephemeral);
                return 1;
            }
            let over = supervisor.run();
            tracing::info!("the machine ended: {:?}", over.cause);
            if over.abandoned {
                clear_away(ephemeral);
            }
            0
        }
        Err(error) => {
            tracing::error!("the launch failed: {error}");
            launch::remove_place(&runtime_dir);
            // Who hears of it may launch another at once.
            drop(lock);
            answer(&mut output, &Response::new(id, Err(error.report())));
            judge.tell(false);
            1
        }
    }
}
