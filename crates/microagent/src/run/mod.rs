//! The way of a run: image and kernel, workspace, machine, command, and everything away again.

pub(crate) mod drive;
#[cfg(test)]
mod drive_tests;
mod outcome;
pub(crate) mod phases;
pub(crate) mod prepare;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use microagent_image::Reference;
use microagent_protocol::{ExtraDisk, LineReport, ShellOrigin, WorkspaceName, supervisor::Event};

use self::{
    drive::{Drive, Setup},
    outcome::Outcome,
    prepare::Prepared,
};
use crate::{
    artifacts, command,
    config::Config,
    copy,
    directories::{self, Directory, RuntimeDirectory},
    error::{Error, IoContext, Result},
    event::RunEvent,
    hostname,
    io::{Control, EventSink, Parts, RunIo},
    name,
    options::RunOptions,
    profile::Resources,
    result::RunResult,
    session::Sinks,
    supervisor::client::{Events, Supervisor},
    workspaces::{
        self,
        launch::{self, Launch},
    },
};

/// Whatever a run waits for, in the order it happens.
pub(crate) enum Happening {
    /// The caller steers.
    Control(Control),
    /// What was prepared in a thread is ready, or cannot be.
    Prepared,
    /// The supervisor told of an event.
    Machine(Event),
    /// The supervisor is gone.
    MachineGone,
    /// The process of the session runs; for a line, in this shell.
    SessionStarted(Option<ShellOrigin>),
    /// The session is over.
    SessionEnded(Result<LineReport>),
    /// The caller's writer failed.
    OutputFailed(io::Error),
    /// The files of the host are in the guest, or cannot be.
    FilesCopied(Result<()>),
}

/// What was asked for, checked.
pub(crate) struct Plan {
    pub(crate) reference: Reference,
    pub(crate) name: WorkspaceName,
    pub(crate) hostname: String,
    pub(crate) resources: Resources,
}

impl Plan {
    pub(crate) fn new(config: &Config, options: &RunOptions) -> Result<Self> {
        command::check(options)?;
        if !config.state_dir.is_absolute() {
            let reason = format!("{} is not absolute", config.state_dir.display());
            return Err(Error::invalid("the state directory", reason));
        }
        if options.image.is_empty() {
            return Err(Error::invalid(
                "the image",
                "none is named; give one, on the command line or in the spec",
            ));
        }
        let reference: Reference = options.image.parse()?;
        let name = match &options.name {
            Some(name) => name
                .parse::<WorkspaceName>()
                .map_err(|error| Error::invalid("--name", error.to_string()))?,
            None => name::generate()?,
        };
        let hostname = options.hostname.clone().unwrap_or_else(|| name.to_string());
        check_hostname(&hostname)?;
        options.wiring.check()?;
        artifacts::check(&options.outputs)?;
        options.files.iter().try_for_each(copy::check_file)?;
        if options.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Error::invalid(
                "--timeout",
                "it is zero; leave it out for no limit",
            ));
        }
        let resources = options.resources();
        Ok(Self {
            reference,
            name,
            hostname,
            resources,
        })
    }
}

/// What Linux and resolvers take as a host name: labels of letters, digits and inner hyphens.
fn check_hostname(hostname: &str) -> Result<()> {
    if hostname::check(hostname) {
        return Ok(());
    }
    Err(Error::invalid(
        "--hostname",
        format!("{hostname:?} is not a host name; use up to 63 letters, digits, '-' and '.'"),
    ))
}

/// Runs a command in a machine of its own and removes everything again.
pub(crate) fn run(config: &Config, options: &RunOptions, io: RunIo) -> Result<RunResult> {
    let begun = Instant::now();
    let plan = Plan::new(config, options)?;
    let _span = tracing::info_span!("run", workspace = %plan.name).entered();
    let Parts {
        stdin,
        stdout,
        stderr,
        events,
        sender,
        receiver,
    } = io.into_parts();
    directories::sweep(config);
    if let Some(into) = &options.artifacts_dir {
        artifacts::prepare(into)?;
    }

    let mut prepared = prepare_or_cancel(config, options, &plan, &events, &sender, &receiver)?;
    let workload = command::workload(options, &prepared.image.config, stdin.is_some())?;
    let files = (!options.files.is_empty()).then(|| Ok(Setup::Files(options.files.clone())));
    let scripts = options.setup.iter().map(|script| {
        let request = command::setup(options, &prepared.image.config, script)?;
        Ok(Setup::Script {
            script: script.clone(),
            request,
        })
    });
    let setups = files.into_iter().chain(scripts).collect::<Result<_>>()?;

    let making = Instant::now();
    let span = tracing::info_span!("workspace").entered();
    let directory = Directory::create(config, &plan.name)?;
    events(RunEvent::Workspace {
        name: plan.name.to_string(),
    });
    let argv = workload.argv.clone();
    let kept = Some(workload.clone());
    let mut manifest = workspaces::make_manifest(&plan, options, &prepared, kept, !options.keep)?;
    manifest.disks = disks_or_cancel(options, directory.path(), &events, &sender, &receiver)?;
    workspaces::fill(&directory, &manifest)?;
    let runtime = RuntimeDirectory::make(config, directory.path())?;
    prepared.phases.add("workspace", making.elapsed());
    drop(span);

    let how = Launch {
        resources: plan.resources,
        workload: None,
        owned: true,
        time_limit: options.timeout,
    };
    let launched = launch::launch(config, &manifest, directory.path(), &runtime, how)?;
    let (supervisor, machine) = Supervisor::own(plan.name.as_str(), &launched)?;
    follow(machine, sender.clone());
    let sinks = Sinks::new(stdout, stderr, config.capture_limit);
    // What is to outlive the machine has to be written out by it.
    let clean = options.keep || options.wiring.writes_outside() || !options.outputs.is_empty();
    let driven = tracing::info_span!("machine").in_scope(|| {
        Drive::new(config, &supervisor, &events, &sender, &sinks, clean)
            .run(&receiver, setups, workload, stdin)
    });
    drop(supervisor);
    drop(runtime);
    let collecting = Instant::now();
    let span = tracing::info_span!("artifacts").entered();
    let artifacts = match driven.started_at {
        Some(_) => artifacts::at_end(
            config,
            &manifest,
            directory.path(),
            options.artifacts_dir.as_deref(),
        ),
        None => Vec::new(),
    };
    let collected = (!artifacts.is_empty()).then(|| collecting.elapsed());
    drop(span);
    if options.keep {
        if driven.started_at.is_some() {
            launch::setup_is_done(directory.path())?;
        }
        directory.keep();
    } else {
        drop(directory);
    }
    let Prepared {
        image,
        kernel,
        phases,
    } = &prepared;
    let (kernel, name) = (&kernel.info, &plan.name);
    Outcome {
        driven,
        config,
        options,
        name,
        image,
        kernel,
        argv,
        artifacts,
        collected,
    }
    .into_result(&sinks, phases.clone(), begun)
}

/// Gets image and kernel ready.
fn prepare_or_cancel(
    config: &Config,
    options: &RunOptions,
    plan: &Plan,
    events: &EventSink,
    sender: &Sender<Happening>,
    receiver: &Receiver<Happening>,
) -> Result<Prepared> {
    let (config, options, reference) = (config.clone(), options.clone(), plan.reference.clone());
    let listener = Arc::clone(events);
    or_cancel(sender, receiver, move || {
        prepare::prepare(&config, &options, &reference, &listener)
    })
}

/// Gets the extra disks ready.
fn disks_or_cancel(
    options: &RunOptions,
    directory: &Path,
    events: &EventSink,
    sender: &Sender<Happening>,
    receiver: &Receiver<Happening>,
) -> Result<Vec<ExtraDisk>> {
    let (wiring, directory) = (options.wiring.clone(), directory.to_owned());
    if !wiring.has_bundles() {
        return wiring.disks(&directory, events);
    }
    let listener = Arc::clone(events);
    or_cancel(sender, receiver, move || {
        wiring.disks(&directory, &listener)
    })
}

/// Does what takes time in a thread, so that the caller can give up meanwhile. The thread then
/// ends by itself; whatever it does is safe to be left half done.
fn or_cancel<T: Send + 'static>(
    sender: &Sender<Happening>,
    receiver: &Receiver<Happening>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let bell = Bell(sender.clone());
    let worker = thread::Builder::new()
        .name("prepare".to_owned())
        .spawn(move || {
            let _rings = bell;
            work()
        })
        .context(
            "start a thread for",
            Path::new("what the machine is made of"),
        )?;
    loop {
        match receiver.recv() {
            Ok(Happening::Prepared) => {
                // What it panicked with goes on here, where somebody waits for it.
                return worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            Ok(Happening::Control(Control::Signal(signal))) => {
                return Err(Error::Cancelled { signal });
            }
            Ok(Happening::Control(Control::Kill | Control::Detach)) => {
                return Err(Error::Cancelled { signal: 9 });
            }
            Ok(_) => {}
            Err(_) => return Err(Error::Cancelled { signal: 15 }),
        }
    }
}

/// Rings when it is dropped: also where the work ended in a panic.
struct Bell(Sender<Happening>);

impl Drop for Bell {
    fn drop(&mut self) {
        // Nobody waits any more when the run was cancelled.
        let _ = self.0.send(Happening::Prepared);
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the run of everything the supervisor tells, and of its end.
fn follow(mut machine: Events, sender: Sender<Happening>) {
    thread::spawn(move || {
        loop {
            let happening = match machine.next() {
                Ok(Some(event)) => Happening::Machine(event),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!("the supervisor's events ended: {error}");
                    break;
                }
            };
            if sender.send(happening).is_err() {
                return;
            }
        }
        // The run may be over already.
        let _ = sender.send(Happening::MachineGone);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SupervisorProgram;

    fn refusal(options: &RunOptions) -> String {
        let config = Config::new("/state", "/run", SupervisorProgram::ThisProgram);
        Plan::new(&config, options)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn bad_options_are_refused_before_anything_is_done() {
        let run = || RunOptions::new("debian:12");
        for (options, words) in [
            (run().name("A"), "--name"),
            (run().hostname("a_b"), "--hostname"),
            (run().hostname("-a"), "--hostname"),
            (run().hostname("a..b"), "--hostname"),
            (run().hostname("x".repeat(64)), "--hostname"),
            (run().timeout(Duration::ZERO), "--timeout"),
            (RunOptions::new("Not An Image"), "Not An Image"),
        ] {
            let error = refusal(&options);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_host_name_is_the_workspaces_unless_given() {
        let config = Config::new("/state", "/run", SupervisorProgram::ThisProgram);
        let plan = Plan::new(&config, &RunOptions::new("debian:12").name("agent-1")).unwrap();
        assert_eq!(plan.hostname, "agent-1");
        let options = RunOptions::new("debian:12").hostname("build.example");
        assert_eq!(
            Plan::new(&config, &options).unwrap().hostname,
            "build.example"
        );
    }
}
