//! Workspaces that stay: made once, started and ended as often as one likes, until they are deleted.
//!
//! What a workspace is stands in its manifest ([`manifest`]), what happened to it in its history
//! ([`history`]). Whether its machine lives is asked of a lock that its supervisor holds
//! ([`machine`]); what is recorded is believed only as far as that bears it out. Whoever changes a
//! workspace holds its directory.

mod apply;
mod clone;
mod commit;
mod control;
mod create;
mod filter;
pub(crate) mod history;
pub(crate) mod launch;
mod list;
mod logs;
mod look;
pub(crate) mod machine;
pub(crate) mod manifest;
mod remove;
mod start;
pub(crate) mod status;
pub(crate) mod verify;

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    time::{Duration, Instant},
};

use microagent_protocol::{
    State, WorkspaceName,
    supervisor::{Event, WorkloadResult},
};

pub use self::{
    apply::{Applied, ApplyPlan, Effect, FieldChange, RefusedChange},
    control::ControlReport,
    create::{CreateOptions, CreatePlan, Created},
    filter::{InvalidFilter, InvalidSortKey, SortKey, WorkspaceFilter},
    history::History,
    list::WorkspaceSummary,
    logs::{ConsoleFollower, ConsoleOptions},
    look::{NetworkReport, NetworkRuntime, NetworkStatus, StatsFollower},
    remove::RemovedWorkspace,
    start::{StartOptions, Started},
    status::{DiskUse, Processes, WorkspaceStatus},
    verify::{Divergence, Verification, Verify},
};
pub(crate) use create::{fill, manifest as make_manifest};
pub(crate) use filter::is_like;

use crate::{
    config::Config,
    directories::{self, Held, Leftover},
    error::{Error, IoContext, Result},
    io::RunIo,
    metrics::{self, Metrics},
    options::RunOptions,
    supervisor::client::Control,
};
use machine::{AtRest, MachineRecord};
use manifest::Manifest;

/// How long another command may hold a workspace before one gives up.
const HOLD_LIMIT: Duration = Duration::from_secs(90);

/// A result may not be larger, in bytes: two streams of 64 MiB, in base64 and escaped.
const MAX_RESULT: u64 = 512 << 20;

/// The workspaces of a state directory.
#[derive(Clone, Copy, Debug)]
pub struct Workspaces<'a> {
    config: &'a Config,
}

impl<'a> Workspaces<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// Makes a workspace. Nothing boots, except for setup commands. It cannot be called off: of `io` the standard
    /// error and the listener for events are all that is used.
    ///
    /// # Errors
    /// [`Error::NameTaken`], and whatever keeps an image or a kernel from being had. After
    /// [`Error::SetupFailed`] the workspace is there, and its next start tries the setup again.
    pub fn create(&self, options: &CreateOptions, io: RunIo) -> Result<Created> {
        create::create(self.config, options, io)
    }

    /// Says what [`create`](Self::create) would do, and touches nothing.
    ///
    /// # Errors
    /// As `create`, as far as it can be known.
    pub fn plan(&self, options: &CreateOptions) -> Result<CreatePlan> {
        create::plan(self.config, options)
    }

    /// Makes a workspace for what a run would do, and starts it: a run that stays behind. What is used of `io` is
    /// as for [`create`](Self::create).
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`Workspace::start`]. After a failure of the second the
    /// workspace is there.
    pub fn launch(&self, options: &RunOptions, io: RunIo) -> Result<Started> {
        create::launch(self.config, options, io)
    }

    /// The workspace of this name.
    ///
    /// # Errors
    /// [`Error::NoWorkspace`] if there is none, [`Error::Damaged`] if its manifest is not what was
    /// written.
    pub fn open(&self, name: &str) -> Result<Workspace<'a>> {
        let name = self.name(name)?;
        let directory = self.config.workspaces_dir().join(name.as_str());
        match Manifest::read(&directory) {
            Ok(manifest) => Ok(Workspace {
                config: self.config,
                directory,
                manifest,
            }),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoWorkspace {
                    name: name.to_string(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Every workspace, by name. One whose manifest is damaged is there with a word on that.
    ///
    /// # Errors
    /// When the directory of workspaces cannot be read.
    pub fn list(&self) -> Result<Vec<WorkspaceSummary>> {
        list::list(self.config)
    }

    /// The names of all workspaces. Looks into none of them.
    ///
    /// # Errors
    /// When the directory of workspaces cannot be read.
    pub fn names(&self) -> Result<Vec<WorkspaceName>> {
        let named = directories::named(self.config)?;
        Ok(named.into_iter().map(|(name, _)| name).collect())
    }

    /// What `names`, or all workspaces, cost: for a monitoring system. One that has no machine has its
    /// state alone.
    ///
    /// # Errors
    /// When one of them is not there, or what is recorded of it cannot be read.
    pub fn metrics(&self, names: &[String]) -> Result<Metrics> {
        metrics::look(self, names)
    }

    /// Removes a workspace, whatever state its files are in. With `force` a live one is killed
    /// first.
    ///
    /// # Errors
    /// [`Error::State`] if it is live and not to be killed, [`Error::NotEnding`] if it cannot be.
    pub fn remove(&self, name: &str, force: bool) -> Result<RemovedWorkspace> {
        remove::remove(self.config, &self.name(name)?, force)
    }

    /// Removes what killed programs left behind: half-made and half-deleted workspaces and the
    /// sockets of dead machines. Never what belongs to a workspace. With `dry_run` it only looks.
    ///
    /// # Errors
    /// When the directory of workspaces cannot be read.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<Vec<Leftover>> {
        directories::collect(self.config, dry_run)
    }

    fn name(&self, name: &str) -> Result<WorkspaceName> {
        name.parse()
            .map_err(|error: microagent_protocol::name::InvalidName| {
                Error::invalid("the workspace's name", error.to_string())
            })
    }
}

/// One workspace that stays.
#[derive(Debug)]
pub struct Workspace<'a> {
    config: &'a Config,
    directory: PathBuf,
    manifest: Manifest,
}

impl Workspace<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &WorkspaceName {
        &self.manifest.name
    }

    /// What it is made of.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The settings it is worked with.
    pub(crate) fn config(&self) -> &Config {
        self.config
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// Its state: what is recorded, as far as its machine bears that out.
    ///
    /// # Errors
    /// When its history cannot be read.
    pub fn state(&self) -> Result<State> {
        Ok(history::state(&self.directory)?.0)
    }

    /// Everything that happened to it. A machine that is gone without a record is recorded first.
    ///
    /// # Errors
    /// When its history cannot be read.
    pub fn history(&self) -> Result<History> {
        if history::state(&self.directory)?.1 {
            history::bury(&self.directory);
        }
        history::read(&self.directory)
    }

    /// Tells `tell` of every event, those that happened already first, until its machine has ended
    /// or `tell` gives false.
    ///
    /// # Errors
    /// When its history cannot be read.
    pub fn follow_events(&self, mut tell: impl FnMut(&Event) -> bool) -> Result<()> {
        let mut told = 0;
        loop {
            let live = machine::is_live(&self.directory);
            let history = self.history()?;
            for event in history.events.iter().filter(|event| event.sequence > told) {
                if !tell(event) {
                    return Ok(());
                }
            }
            told = history
                .events
                .last()
                .map_or(told, |event| event.sequence.max(told));
            if !live {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How its workload ended at its last start, if it did.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the record is not what was written.
    pub fn result(&self) -> Result<Option<WorkloadResult>> {
        let path = self.directory.join("result.json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::Io {
                    doing: "open",
                    path,
                    source,
                });
            }
        };
        let mut bytes = Vec::new();
        file.take(MAX_RESULT)
            .read_to_end(&mut bytes)
            .context("read", &path)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Damaged {
                path,
                reason: format!("it is not understood: {error}"),
            })
    }

    /// How its workload ended at its last start.
    ///
    /// # Errors
    /// [`Error::NoResult`] if it has not ended yet, or there is none.
    pub fn require_result(&self) -> Result<WorkloadResult> {
        self.result()?.ok_or_else(|| Error::NoResult {
            name: self.name().to_string(),
        })
    }

    /// Waits until it is not live, at most `limit`; gives the state it is in then.
    ///
    /// # Errors
    /// [`Error::NotEnding`] if the time is up.
    pub fn wait(&self, limit: Option<Duration>) -> Result<State> {
        let begun = Instant::now();
        loop {
            let (state, lost) = history::state(&self.directory)?;
            if lost {
                history::bury(&self.directory);
            }
            if state == State::Quarantined || !machine::is_live(&self.directory) {
                return Ok(state);
            }
            if let Some(limit) = limit.filter(|limit| begun.elapsed() >= *limit) {
                return Err(Error::NotEnding {
                    name: self.name().to_string(),
                    limit,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a machine uses its disks.
    pub(crate) fn is_live(&self) -> Result<bool> {
        Ok(self.state()?.is_live() || machine::is_live(&self.directory))
    }

    /// The most bytes its machine can hold, on its disks and in its memory.
    pub(crate) fn capacity(&self) -> u64 {
        self.manifest.capacity()
    }

    /// The way to its machine.
    ///
    /// # Errors
    /// [`Error::State`] if there is none.
    pub(crate) fn connect(&self) -> Result<Control> {
        self.connect_in(self.state()?)
    }

    /// The way to its machine, as it is known to be in `state`.
    pub(crate) fn connect_in(&self, state: State) -> Result<Control> {
        let record = MachineRecord::read(&self.directory)
            .filter(|_| state.is_live())
            .ok_or_else(|| self.in_state(state, "used"))?;
        Ok(Control::new(self.name().as_str(), record.socket()))
    }

    /// Takes the right to change it.
    pub(crate) fn hold(&self) -> Result<Held> {
        Held::within(&self.directory, HOLD_LIMIT)?.ok_or_else(|| Error::Busy {
            name: self.name().to_string(),
        })
    }

    /// Reads it again: somebody else may have changed it before it was held.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.manifest = Manifest::read(&self.directory)?;
        Ok(())
    }

    /// Keeps it without a machine, while what only such a workspace lets be done is done; the caller holds it.
    pub(crate) fn at_rest(&self, doing: &'static str) -> Result<AtRest> {
        let at_rest = AtRest::keep(&self.directory);
        let state = self.state()?;
        at_rest
            .filter(|_| !state.is_live())
            .ok_or_else(|| self.in_state(state, doing))
    }

    /// Why `doing` is impossible in `state`, and what to do.
    pub(crate) fn in_state(&self, state: State, doing: &'static str) -> Error {
        let name = self.name();
        let remedy = match state {
            State::Quarantined => format!("End it first: `microagent kill {name}`."),
            State::Running if doing == "started" => {
                format!(
                    "Use it: `microagent exec {name} -- COMMAND`, or `microagent connect {name}`."
                )
            }
            State::Paused if ["used", "started"].contains(&doing) => {
                format!("Thaw it first: `microagent resume {name}`.")
            }
            State::Starting | State::Running | State::Paused => {
                format!("End it first: `microagent halt {name}`.")
            }
            State::Prepared | State::Halted | State::Stopped | State::Failed => {
                format!("Start it first: `microagent start {name}`.")
            }
        };
        Error::State {
            name: name.to_string(),
            state,
            doing,
            remedy,
        }
    }
}
