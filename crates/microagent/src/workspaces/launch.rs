//! From a manifest to a machine that is ready.

use std::{path::Path, sync::mpsc::channel, time::Duration};

use microagent_protocol::{
    ExitStatus, LaunchSpec, Mebibytes, State, VcpuCount,
    exec::ExecRequest,
    supervisor::{Command, Event, EventKind, Launched},
};

use super::{machine::MachineRecord, manifest::Manifest};
use crate::{
    config::Config,
    copy,
    directories::{self, RuntimeDirectory, SCRATCH},
    error::{Error, Result},
    event::RunEvent,
    files::{self, Durability},
    io::EventSink,
    profile::Resources,
    run::{Happening, drive::describe, millis},
    session::{Session, Sinks},
    supervisor::{
        client::{Control, Events},
        program,
    },
    trace::MachinePhases,
};

/// Says that the setup commands have run. It is made last and never changed.
const SETUP_DONE: &str = "setup-done";

/// How a machine is launched, beside what its manifest says.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// What the machine is given, this time.
    pub(crate) resources: Resources,
    /// Started by the supervisor when the guest is ready.
    pub(crate) workload: Option<ExecRequest>,
    /// Whether the machine lives only as long as its launcher.
    pub(crate) owned: bool,
    /// How long it may live.
    pub(crate) time_limit: Option<Duration>,
}

/// What a supervisor is told of a machine in `directory`.
pub(crate) fn spec(
    config: &Config,
    manifest: &Manifest,
    directory: &Path,
    runtime_dir: &Path,
    launch: Launch,
) -> Result<LaunchSpec> {
    let vcpus = VcpuCount::try_from(launch.resources.cpu_count)
        .map_err(|error| Error::invalid("--cpus", error.to_string()))?;
    Ok(LaunchSpec {
        workspace: manifest.name.clone(),
        directory: directory.to_owned(),
        runtime_dir: runtime_dir.to_owned(),
        backend: manifest.backend,
        host_cache: Some(config.host_cache_dir()),
        probe_limit_ms: config.timeouts.probe.map(millis),
        memory: launch.resources.memory_mib,
        vcpus,
        kernel: manifest.parts.kernel.path.clone(),
        initramfs: manifest.parts.initramfs.path.clone(),
        base_disk: manifest.parts.base_disk.path.clone(),
        scratch_disk: directory.join(SCRATCH),
        disks: manifest.disks.clone(),
        network: manifest.network,
        confinement: config.confinement,
        publish: manifest.publish.clone(),
        mediation: manifest.mediation.clone(),
        workload: launch.workload,
        artifacts: manifest.artifacts.clone(),
        hostname: manifest.hostname.clone(),
        boot_timeout_ms: millis(config.timeouts.boot),
        time_limit_ms: launch.time_limit.map(millis),
        owned: launch.owned,
        ephemeral: manifest.ephemeral,
        capture_limit: config.capture_limit,
        console_limit: config.console_limit,
        log: config.log.clone(),
    })
}

/// Launches a machine in `directory`, records its supervisor, and gives where it listens.
pub(crate) fn launch(
    config: &Config,
    manifest: &Manifest,
    directory: &Path,
    runtime: &RuntimeDirectory,
    launch: Launch,
) -> Result<Launched> {
    let spec = spec(config, manifest, directory, runtime.path(), launch)?;
    let span = tracing::info_span!("spawn");
    let launched = span.in_scope(|| program::launch(config, spec))?;
    let record = MachineRecord {
        runtime_dir: runtime.path().to_owned(),
        supervisor: Some(launched.supervisor.clone()),
    };
    record.write(directory)?;
    Ok(launched)
}

/// A machine that was launched and is ready. One that is owned ends with this value.
pub(crate) struct Booted {
    pub(crate) control: Control,
    /// What holds it, if it is owned.
    _machine: Events,
    /// What happened until it was ready.
    pub(crate) events: Vec<Event>,
}

/// Launches a machine and waits for its guest to be ready.
pub(crate) fn boot(
    config: &Config,
    manifest: &Manifest,
    directory: &Path,
    how: Launch,
    listener: &EventSink,
) -> Result<Booted> {
    if let Some(dead) = super::machine::dead_runtime(directory) {
        directories::remove_runtime(&dead);
    }
    let runtime = RuntimeDirectory::make(config, directory)?;
    let owned = how.owned;
    let memory = how.resources.memory_mib;
    let launched = launch(config, manifest, directory, &runtime, how)?;
    runtime.hand_over();
    let control = Control::new(manifest.name.as_str(), launched.socket);
    let mut machine = match owned {
        true => control.own()?,
        false => control.subscribe()?,
    };
    let events = until_ready(manifest, memory, &mut machine, listener)?;
    Ok(Booted {
        control,
        _machine: machine,
        events,
    })
}

fn until_ready(
    manifest: &Manifest,
    memory: Mebibytes,
    machine: &mut Events,
    listener: &EventSink,
) -> Result<Vec<Event>> {
    let never = |reason: String, console: Option<String>| Error::NeverStarted {
        workspace: manifest.name.to_string(),
        reason,
        console,
        memory,
    };
    let _span = tracing::info_span!("machine").entered();
    let mut phases = MachinePhases::of(&manifest.name);
    let mut events = Vec::new();
    loop {
        let event = machine
            .next()
            .map_err(|error| Error::connection(manifest.name.as_str(), &error))?
            .ok_or_else(|| never("its supervisor is gone".to_owned(), None))?;
        phases.see(&event);
        listener(RunEvent::Machine(event.clone()));
        let (ready, ended) = match &event.kind {
            EventKind::GuestReady { .. } => (true, None),
            EventKind::Ended { cause, detail, .. } => (false, Some((*cause, detail.clone()))),
            _ => (false, None),
        };
        events.push(event);
        if ready {
            return Ok(events);
        }
        if let Some((cause, detail)) = ended {
            return Err(never(cause.to_string(), detail));
        }
    }
}

/// Whether the setup commands of the workspace in `directory` are still to be run.
pub(crate) fn setup_is_due(manifest: &Manifest, directory: &Path) -> bool {
    let nothing = manifest.setup.is_empty() && manifest.files.is_empty();
    !nothing && !directory.join(SETUP_DONE).exists()
}

/// Notes that the setup commands have run.
pub(crate) fn setup_is_done(directory: &Path) -> Result<()> {
    files::write(&directory.join(SETUP_DONE), b"", Durability::Synced)
}

/// Boots the workspace for its setup commands alone, and shuts it down cleanly. Their output goes
/// to `output`. What fails is tried again at the next start.
pub(crate) fn set_up(
    config: &Config,
    manifest: &Manifest,
    directory: &Path,
    output: Box<dyn std::io::Write + Send>,
    listener: &EventSink,
) -> Result<()> {
    let _span = tracing::info_span!("setup").entered();
    let how = Launch {
        resources: manifest.resources,
        workload: None,
        // Nobody is to find a workspace that is half set up and runs.
        owned: true,
        time_limit: None,
    };
    let booted = boot(config, manifest, directory, how, listener)?;
    let outcome = run_setup(&booted.control, manifest, output, listener);
    let grace_ms = millis(config.timeouts.grace);
    let limit = config.timeouts.grace + config.timeouts.shutdown;
    let (command, wanted) = match &outcome {
        Ok(()) => (Command::Halt { grace_ms }, State::Halted),
        Err(_) => (Command::Kill, State::Stopped),
    };
    let ended = booted.control.status(command, limit);
    super::machine::wait_gone(directory, config.timeouts.shutdown);
    outcome?;
    let ended = ended?;
    if ended.state != wanted {
        return Err(Error::SetupFailed {
            command: "the shutdown after the setup".to_owned(),
            outcome: format!("the machine is {} and not {wanted}", ended.state),
        });
    }
    setup_is_done(directory)
}

fn run_setup(
    control: &Control,
    manifest: &Manifest,
    output: Box<dyn std::io::Write + Send>,
    listener: &EventSink,
) -> Result<()> {
    let sinks = Sinks::together(output);
    for file in &manifest.files {
        listener(RunEvent::File {
            src: file.src.clone(),
        });
        copy::inject(control, file)?;
    }
    for script in &manifest.setup {
        listener(RunEvent::Setup {
            command: script.clone(),
        });
        let (sender, receiver) = channel();
        let exec = control.open(Command::Exec(manifest.setup_request(script)))?;
        let session = Session::spawn(exec, None, sinks.clone(), sender)?;
        let report = loop {
            match receiver.recv() {
                Ok(Happening::SessionEnded(ended)) => break ended?.exit,
                Ok(_) => {}
                Err(_) => {
                    return Err(Error::SupervisorFailed {
                        subject: manifest.name.to_string(),
                        reason: "the setup's session broke off".to_owned(),
                        log: None,
                    });
                }
            }
        };
        drop(session);
        if report.status != (ExitStatus::Exited { code: 0 }) {
            return Err(Error::SetupFailed {
                command: script.clone(),
                outcome: describe(&report.status),
            });
        }
    }
    Ok(())
}
