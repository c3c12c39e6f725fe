//! AI agent workspaces, each in its own Linux microVM: the library.
//!
//! A [`Microagent`] runs a command of an OCI image in a machine of its own and tells how it went:
//!
//! ```no_run
//! use microagent::{Config, Microagent, RunIo, RunOptions, SupervisorProgram};
//!
//! let supervisor = SupervisorProgram::At("/usr/local/bin/microagent".into());
//! let microagent = Microagent::new(Config::new("/var/lib/agents", "/run/agents", supervisor));
//! let options = RunOptions::new("debian:12").command(["uname", "-a"]).env("GREETING", "hello");
//! let result = microagent.run(&options, RunIo::captured())?;
//! println!("{} (exit code {})", result.stdout.data, result.exit_code);
//! # Ok::<(), microagent::Error>(())
//! ```
//!
//! This crate owns workspaces and the way of a run. It never talks to a virtual machine monitor:
//! it starts a supervisor program for each machine and speaks the supervisor protocol with it. It
//! reads no environment, no home directory and no terminal: all of that is in [`Config`],
//! [`RunOptions`] and [`RunIo`].
#![forbid(unsafe_code)]

mod artifacts;
mod auth;
mod command;
mod config;
mod contract;
mod copy;
mod directories;
mod doctor;
pub mod env_file;
mod error;
mod event;
mod exec;
mod files;
mod hostname;
mod images;
mod io;
mod kernels;
mod metrics;
mod name;
mod options;
mod parallel;
pub mod perf;
mod profile;
mod registries;
mod result;
mod run;
mod session;
pub mod signal;
mod spec;
mod supervise;
mod supervisor;
pub mod trace;
mod usage;
mod wiring;
mod workspaces;

pub use artifacts::{
    Artifact, ArtifactChannels, ArtifactKind, ArtifactList, ArtifactState, ChannelKind,
    EgressArtifact, IngressArtifact, TakenArtifacts,
};
pub use config::{Config, SUPERVISOR_PROGRAM, SupervisorProgram, Timeouts};
pub use contract::{Contract, contract};
pub use copy::{CopyIo, CopyOptions, Endpoint, InvalidEndpoint};
pub use directories::{Leftover, LeftoverKind};
pub use doctor::{DoctorOptions, DoctorReport};
pub use error::{Error, Result};
pub use event::RunEvent;
pub use exec::{
    ExecOptions, ExecResult, LineOptions, LineResult, SerialEnd, ShellEnd, ShellOptions,
};
pub use images::{
    BaseSource, ImageArrival, ImageFilter, ImagePullOptions, ImageSortKey, ImageSummary, Images,
    InvalidImageFilter, InvalidImageSortKey, OutdatedImage, OutdatedState, Rootfs, RootfsOptions,
};
pub use io::{RunController, RunIo};
pub use kernels::{CheckedKernel, CheckedKernels, Kernels};
pub use metrics::{Metrics, WorkspaceMetrics};
pub use microagent_image::{
    Bytes, CheckedImage, CheckedSignature, CommitOptions, Committed, Digest, ExportFormat,
    ExportOptions, ExportTo, Exported, ExportedImage, Freshness, HistoryStep, ImageChange,
    ImageConfig, ImageDetails, ImageDivergence, ImageError, ImageEvent, ImageHistory, ImageRecord,
    ImageTree, ImportOptions, LayerRecord, MemoryUse, Platform, Provenance as ImageProvenance,
    ProxyOptions, PruneOptions, PruneReason, Pruned, PrunedImage, PullPolicy, Pushed, Reclaimed,
    Reference, RegistryScope, Removed, RootDisk, Secret, StoreVerification, Tagged, TreeImage,
    TreeLayer, Untagged, VerifyKey,
};
pub use microagent_kernel::{
    Architecture as KernelArchitecture, BuildOptions as KernelBuildOptions, BuiltKernel,
    DEFAULT_CHANNEL as DEFAULT_KERNEL_CHANNEL, Divergence as KernelDivergence, GUEST_SHA256,
    KernelError, KernelList, KernelProgress, KernelRecord, KernelSource,
    Patience as KernelPatience, Provenance, RepositorySource as KernelRepository,
    SOURCE_PACKAGE as KERNEL_SOURCE_PACKAGE,
};
pub use microagent_protocol::text;
pub use microagent_protocol::{
    Backend, BackendChoice, Capabilities, CapturedOutput, Confinement, ConfinementLayer,
    ConfinementMode, DeclaredArtifact, EndCause, EnvVar, ExitStatus, ExtraDisk, GuestPath,
    InvalidLogFilter, InvalidWiring, ItemName, LogFilter, LogLevel, MachineStats, Mebibytes,
    MediationRoute, MediationTarget, NetworkMode, NetworkProvider, ProcessIdentity, PublishedPort,
    Readiness, ReadinessReport, ReadinessSignal, ShellFate, ShellOrigin, StartFailure, State,
    Timestamp, TtySize, VcpuCount, WorkspaceName,
    confinement::{InvalidConfinementMode, MissingLayer},
    copy::{CopyReport, FileMode, InvalidMode, InvalidOwner, Owner},
    exec::InvalidEnvVar,
    guest::{GuestIpv6, GuestNetwork},
    launch::InvalidNetworkMode,
    output::OutputEncoding,
    supervisor::{
        ErrorKind, ErrorReport, Event, EventKind, HostCheck, HostReport, Verdict, WorkloadResult,
    },
};
pub use options::{HostFile, KernelChoice, RunOptions};
pub use profile::{Profile, ProfileInfo, Resources};
pub use registries::{CredentialKind, Identity, Login, LoginOptions, Logout, Registries};
pub use result::{EXIT_FAILED, EXIT_TIMED_OUT, ImageInfo, KernelInfo, Phase, RunResult, TagMove};
pub use spec::{Spec, SpecError, SpecFault, SpecKey, SpecResources, SpecWorkload};
pub use supervise::{
    HealthCheck, HealthProbe, InvalidRestartPolicy, RestartPolicy, SuperviseEnd, SuperviseEvent,
    SuperviseOptions, SuperviseReport, SuperviseStop, SuperviseUnit, UnitReport,
};
pub use usage::{DiskUsage, KindUsage, PruneReport};
pub use wiring::{InvalidVolume, Volume, VolumeSource, Wiring};
pub use workspaces::{
    Applied, ApplyPlan, ConsoleFollower, ConsoleOptions, ControlReport, CreateOptions, CreatePlan,
    Created, DiskUse, Divergence, Effect, FieldChange, History, InvalidFilter, InvalidSortKey,
    NetworkReport, NetworkRuntime, NetworkStatus, Processes, RefusedChange, RemovedWorkspace,
    SortKey, StartOptions, Started, StatsFollower, Verification, Verify, Workspace,
    WorkspaceFilter, WorkspaceStatus, WorkspaceSummary, Workspaces,
};

/// Runs workspaces; the way in.
#[derive(Clone, Debug)]
pub struct Microagent {
    config: Config,
}

impl Microagent {
    /// Works with these settings. Nothing is touched yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a command in a machine of its own, and returns when the machine is gone.
    ///
    /// The image is pulled and a kernel installed first where they are missing. Unless
    /// [`RunOptions::keep`] was set, nothing of the workspace is left, however the run ended.
    ///
    /// # Errors
    /// When the command never started. How it ended, once it had, is in the result.
    pub fn run(&self, options: &RunOptions, io: RunIo) -> Result<RunResult> {
        run::run(&self.config, options, io)
    }

    /// The workspaces that stay.
    #[must_use]
    pub fn workspaces(&self) -> Workspaces<'_> {
        Workspaces::new(&self.config)
    }

    /// Copies files between this host and workspaces, running or not.
    ///
    /// # Errors
    /// Whatever keeps a file from being read or written. Each file is as it was or as it is to be;
    /// those that were complete stay.
    pub fn copy(
        &self,
        from: &Endpoint,
        to: &Endpoint,
        options: &CopyOptions,
        io: CopyIo,
    ) -> Result<CopyReport> {
        copy::copy(&self.config, from, to, options, io)
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> Images<'_> {
        Images::new(&self.config)
    }

    /// The registries, and who we are to them.
    #[must_use]
    pub fn registries(&self) -> Registries<'_> {
        Registries::new(&self.config)
    }

    /// The kernels.
    #[must_use]
    pub fn kernels(&self) -> Kernels<'_> {
        Kernels::new(&self.config)
    }

    /// What images, kernels, workspaces and caches take on the disk, and what could come free.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        usage::disk_usage(&self.config)
    }

    /// Takes away what nobody needs: what [`Workspaces::collect_garbage`] and [`Images::prune`] do.
    ///
    /// # Errors
    /// Those of either.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        usage::prune(&self.config, options)
    }

    /// Benchmarks of machines and commands on this host.
    #[must_use]
    pub fn perf(&self) -> perf::Perf<'_> {
        perf::Perf::new(&self.config)
    }

    /// What this host has to run machines with, as a report and no verdict; boots a small probe where
    /// that was not proved yet.
    ///
    /// # Errors
    /// When the supervisor cannot be asked.
    pub fn host(&self, options: &DoctorOptions) -> Result<HostReport> {
        doctor::host(&self.config, options)
    }

    /// What this host can run; boots a small probe where that was not proved yet.
    ///
    /// # Errors
    /// None at present: what is wrong is in the report.
    pub fn doctor(&self, options: &DoctorOptions) -> Result<DoctorReport> {
        doctor::run(&self.config, options)
    }
}

/// Reads `data` as a credential file, or after a `t` as `registries.toml`, for fuzzing: whatever the bytes
/// are, it returns.
#[doc(hidden)]
pub fn fuzz_registry_files(data: &[u8]) {
    match data.strip_prefix(b"t") {
        Some(text) => registries::fuzz(&String::from_utf8_lossy(text)),
        None => auth::fuzz(data),
    }
}
