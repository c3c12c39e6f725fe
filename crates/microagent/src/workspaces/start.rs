//! Booting a workspace that was made before.

use std::time::{Duration, Instant};

use microagent_kernel::{GUEST_BINARY, GUEST_SHA256, KernelStore};
use microagent_protocol::{
    Backend, Mebibytes, ReadinessReport, State, VcpuCount, WorkspaceName,
    supervisor::{Answer, Command, EventKind},
};
use serde::Serialize;

use super::{
    Workspace,
    launch::{self, Launch},
    verify::{self, Verify},
};
use crate::{
    error::{Error, Result},
    io::{Parts, RunIo},
    profile::{Profile, Resources},
    result::TagMove,
};

/// How long the answer to a question about a running machine may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What is different about one start.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct StartOptions {
    profile: Option<Profile>,
    memory: Option<Mebibytes>,
    vcpus: Option<VcpuCount>,
    timeout: Option<Duration>,
    verify: Verify,
}

impl StartOptions {
    /// As the workspace was made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory and vCPUs of this profile, this time.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// So much memory, this time.
    pub fn memory(mut self, memory: Mebibytes) -> Self {
        self.memory = Some(memory);
        self
    }

    /// So many vCPUs, this time.
    pub fn vcpus(mut self, vcpus: VcpuCount) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// Ends the machine after this time; the supervisor holds it to that.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How thoroughly the workspace is verified before.
    pub fn verify(mut self, how: Verify) -> Self {
        self.verify = how;
        self
    }

    /// What the machine is given, this time. The disk has the size it was made with.
    fn resources(&self, own: Resources) -> Resources {
        let own = self.profile.map_or(own, |profile| Resources {
            size_mib: own.size_mib,
            ..profile.resources()
        });
        Resources {
            memory_mib: self.memory.unwrap_or(own.memory_mib),
            cpu_count: self.vcpus.map_or(own.cpu_count, u32::from),
            size_mib: own.size_mib,
        }
    }
}

/// A workspace whose guest is ready.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Started {
    /// Its name.
    pub workspace: WorkspaceName,
    /// Its state when it was looked at: a short workload may be over.
    pub state: State,
    /// What runs it.
    pub backend: Option<Backend>,
    /// What its machine was given.
    pub resources: Resources,
    /// What it is ready for.
    pub readiness: ReadinessReport,
    /// From the call to the guest's readiness, in milliseconds.
    pub ms: u64,
    /// Set by [`launch`](crate::Workspaces::launch) where the image's tag was found to have moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_moved: Option<TagMove>,
}

impl Workspace<'_> {
    /// Boots it; returns when its guest is ready. The machine outlives this program.
    ///
    /// Setup commands that have not run yet are run first, in a boot of their own, with their
    /// output on the standard error of `io`. Of `io` that and the listener for events are all that is used: a
    /// controller of it steers nothing here.
    ///
    /// # Errors
    /// [`Error::State`] if it runs or is quarantined, [`Error::Diverged`] if it is not what was
    /// recorded, and whatever keeps a machine from booting.
    pub fn start(&mut self, options: &StartOptions, io: RunIo) -> Result<Started> {
        let begun = Instant::now();
        let _span = tracing::info_span!("start", workspace = %self.name()).entered();
        let Parts { stderr, events, .. } = io.into_parts();
        let _held = self.hold()?;
        self.refresh()?;
        drop(self.at_rest("started")?);
        let verification = tracing::info_span!("verify")
            .in_scope(|| verify::verify(self.config, &self.manifest, options.verify));
        if !verification.ok {
            return Err(Error::Diverged {
                name: self.name().to_string(),
                found: verification.divergence,
            });
        }
        self.renew_agent()?;
        if launch::setup_is_due(&self.manifest, &self.directory) {
            launch::set_up(
                self.config,
                &self.manifest,
                &self.directory,
                stderr,
                &events,
            )?;
        }
        let how = Launch {
            resources: options.resources(self.manifest.resources),
            workload: self.manifest.workload.clone(),
            owned: false,
            time_limit: options.timeout,
        };
        let resources = how.resources;
        let booted = launch::boot(self.config, &self.manifest, &self.directory, how, &events)?;
        let backend = booted.events.iter().find_map(|event| match event.kind {
            EventKind::Starting { backend, .. } => Some(backend),
            _ => None,
        });
        let ms = crate::run::millis(begun.elapsed());
        // A machine with a short workload may be gone again by now.
        let (state, readiness) = match booted.control.ask(Command::Inspect, ANSWER_LIMIT) {
            Ok(Answer::Status(status)) => (status.state, status.readiness),
            _ => (self.state()?, ReadinessReport::default()),
        };
        Ok(Started {
            workspace: self.name().clone(),
            state,
            backend,
            resources,
            readiness,
            ms,
            tag_moved: None,
        })
    }

    /// Boots with the agent of this microagent where the workspace was made by another one: the
    /// two ends of the guest link must speak the same language.
    fn renew_agent(&mut self) -> Result<()> {
        if self.manifest.parts.guest_sha256 == GUEST_SHA256 {
            return Ok(());
        }
        let store = KernelStore::open(&self.config.state_dir)?;
        let record = store.inspect(&self.manifest.kernel.id)?;
        let initramfs = store.initramfs(&record, GUEST_BINARY)?;
        self.manifest.parts.initramfs.path = initramfs.path;
        self.manifest.parts.initramfs.sha256 = initramfs.sha256;
        GUEST_SHA256.clone_into(&mut self.manifest.parts.guest_sha256);
        self.manifest.write(&self.directory)
    }
}
