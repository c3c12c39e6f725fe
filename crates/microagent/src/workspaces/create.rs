//! Making a workspace that stays.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use microagent_image::{ImageConfig, ImageStore};
use microagent_kernel::GUEST_SHA256;
use microagent_protocol::{WorkspaceName, exec::ExecRequest};
use serde::Serialize;

use super::{
    StartOptions, Started, Workspaces, launch,
    manifest::{Hashed, Manifest, Part, Parts},
};
use crate::{
    command,
    config::Config,
    directories::{self, Directory},
    error::{Error, Result},
    event::RunEvent,
    io::{Parts as IoParts, RunIo},
    options::RunOptions,
    profile::Resources,
    result::{ImageInfo, KernelInfo, Phase, TagMove},
    run::{
        Plan,
        prepare::{self, Prepared},
    },
    supervise::{HealthCheck, RestartPolicy},
};

/// What to make a workspace of: the options of a run, and what only a workspace that stays has.
///
/// ```
/// use microagent::{CreateOptions, RestartPolicy, RunOptions};
///
/// let service = RunOptions::new("postgres:16").name("db").env("POSTGRES_PASSWORD", "x");
/// let options = CreateOptions::new(service)
///     .image_command(true)
///     .restart(RestartPolicy::OnFailure);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CreateOptions {
    pub(crate) run: RunOptions,
    pub(crate) image_command: bool,
    pub(crate) restart: RestartPolicy,
    pub(crate) health: Option<HealthCheck>,
}

impl CreateOptions {
    /// A workspace for what `run` says. Without a command it idles after each start, until it is
    /// told to end.
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            image_command: false,
            restart: RestartPolicy::default(),
            health: None,
        }
    }

    /// The options of a run alone.
    pub fn run_options(&self) -> &RunOptions {
        &self.run
    }

    /// The same with other options of a run.
    pub fn with_run_options(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    /// Runs the image's own command at each start when no other is given.
    pub fn image_command(mut self, run: bool) -> Self {
        self.image_command = run;
        self
    }

    /// When `supervise` starts it again.
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// What tells `supervise` that it is well.
    pub fn health(mut self, check: HealthCheck) -> Self {
        self.health = Some(check);
        self
    }

    /// For a workspace of this name.
    pub(super) fn named(mut self, name: &str) -> Self {
        self.run = self.run.name(name);
        self
    }

    /// What runs at each start.
    pub(super) fn workload(&self, image: &ImageConfig) -> Result<Option<ExecRequest>> {
        let run = &self.run;
        let given = run.shell.is_some() || !run.command.is_empty() || run.entrypoint.is_some();
        if given || self.image_command {
            command::workload(run, image, false).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// What `create` would do.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CreatePlan {
    /// The workspace's name; one that is made up may differ from that of the real one.
    pub name: WorkspaceName,
    /// The image as it would be asked for, in full.
    pub image: String,
    /// Where the workspace would be.
    pub directory: PathBuf,
    /// What the machine would be given.
    pub resources: Resources,
    /// The guest's host name.
    pub hostname: String,
    /// The setup commands, which take a boot of their own.
    pub setup: Vec<String>,
    /// The command as far as it is known without the image.
    pub command: Vec<String>,
}

/// A workspace that was made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Created {
    /// Its name.
    pub workspace: WorkspaceName,
    /// Its directory.
    pub directory: PathBuf,
    /// Its image.
    pub image: ImageInfo,
    /// Set where the image's tag was found to have moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_moved: Option<TagMove>,
    /// Its kernel.
    pub kernel: KernelInfo,
    /// What its machine is given.
    pub resources: Resources,
    /// What runs at each start; empty if nothing does.
    pub command: Vec<String>,
    /// Whether setup commands ran.
    pub set_up: bool,
    /// What took how long.
    pub phases: Vec<Phase>,
}

/// Checks everything that can be checked without touching anything.
pub(crate) fn plan(config: &Config, options: &CreateOptions) -> Result<CreatePlan> {
    let plan = Plan::new(config, &options.run)?;
    check(options)?;
    let directory = config.workspaces_dir().join(plan.name.as_str());
    if directory.exists() {
        return Err(Error::NameTaken {
            name: plan.name.to_string(),
        });
    }
    Ok(CreatePlan {
        image: plan.reference.canonical(),
        directory,
        resources: plan.resources,
        hostname: plan.hostname,
        setup: options.run.setup.clone(),
        command: options.run.shell.as_ref().map_or_else(
            || options.run.command.clone(),
            |script| command::shell(options.run.shell_program.as_deref(), script),
        ),
        name: plan.name,
    })
}

pub(super) fn check(options: &CreateOptions) -> Result<()> {
    if options.run.timeout.is_some() {
        return Err(Error::invalid(
            "--timeout",
            "a workspace that stays has none; give it to `start`",
        ));
    }
    if options.run.tty.is_some() {
        return Err(Error::invalid(
            "--tty",
            "a workspace that stays has no terminal of its own; use `connect` or `exec -t`",
        ));
    }
    if options.run.artifacts_dir.is_some() {
        return Err(Error::invalid(
            "--artifacts-dir",
            "only a run that is waited for fills it; take artifacts out of a workspace that stays \
             with `artifacts get`",
        ));
    }
    if options.image_command && (options.run.shell.is_some() || !options.run.command.is_empty()) {
        return Err(Error::invalid(
            "--image-command",
            "another command is given as well; give one of the two",
        ));
    }
    Ok(())
}

/// Makes a workspace. Its directory is complete or not there.
pub(crate) fn create(config: &Config, options: &CreateOptions, io: RunIo) -> Result<Created> {
    let plan = Plan::new(config, &options.run)?;
    check(options)?;
    let IoParts { stderr, events, .. } = io.into_parts();
    directories::sweep(config);
    let mut prepared = prepare::prepare(config, &options.run, &plan.reference, &events)?;
    let workload = options.workload(&prepared.image.config)?;
    let making = Instant::now();
    // It stays, so what it is made of is to outlive the host's next crash.
    ImageStore::open(config.images_dir())?.settle(&prepared.image.disk)?;
    let directory = Directory::create(config, &plan.name)?;
    let manifest = Manifest {
        disks: options.run.wiring.disks(directory.path(), &events)?,
        restart: options.restart,
        health: options.health.clone(),
        ..manifest(&plan, &options.run, &prepared, workload, false)?
    };
    fill(&directory, &manifest)?;
    prepared.phases.add("workspace", making.elapsed());
    events(RunEvent::Workspace {
        name: plan.name.to_string(),
    });
    let path = directory.path().to_owned();
    let mut set_up = false;
    if launch::setup_is_due(&manifest, &path) {
        let begun = Instant::now();
        let outcome = launch::set_up(config, &manifest, &path, stderr, &events);
        prepared.phases.add("setup", begun.elapsed());
        if let Err(error) = outcome {
            // It is whole, and the next start tries again.
            directory.keep();
            return Err(error);
        }
        set_up = true;
    }
    directory.keep();
    Ok(Created {
        workspace: plan.name,
        directory: path,
        image: manifest.image,
        tag_moved: prepared.image.tag_moved,
        kernel: manifest.kernel,
        resources: manifest.resources,
        command: manifest
            .workload
            .map(|workload| workload.argv)
            .unwrap_or_default(),
        set_up,
        phases: prepared.phases.into_list(),
    })
}

/// Makes a workspace that runs what a run would, and starts it.
pub(crate) fn launch(config: &Config, options: &RunOptions, io: RunIo) -> Result<Started> {
    let mut run = options.clone();
    let timeout = run.timeout.take();
    let has_command = run.shell.is_some() || !run.command.is_empty() || run.entrypoint.is_some();
    let events = Arc::clone(&io.events);
    let options = CreateOptions::new(run).image_command(!has_command);
    let created = create(config, &options, io)?;
    let mut workspace = Workspaces::new(config).open(created.workspace.as_str())?;
    let mut start = StartOptions::new();
    if let Some(timeout) = timeout {
        start = start.timeout(timeout);
    }
    let io = RunIo::captured().on_event(move |event| events(event));
    let started = workspace.start(&start, io)?;
    Ok(Started {
        tag_moved: created.tag_moved,
        ..started
    })
}

/// What a workspace is made of, as it is recorded.
pub(crate) fn manifest(
    plan: &Plan,
    options: &RunOptions,
    prepared: &Prepared,
    workload: Option<ExecRequest>,
    ephemeral: bool,
) -> Result<Manifest> {
    let (image, kernel) = (&prepared.image, &prepared.kernel);
    Ok(Manifest {
        name: plan.name.clone(),
        ephemeral,
        created_at: SystemTime::now().into(),
        image: image.info.clone(),
        kernel: kernel.info.clone(),
        parts: Parts {
            kernel: Part {
                path: kernel.kernel.clone(),
                sha256: kernel.info.sha256.clone(),
                hashed: Hashed::Whole,
            },
            initramfs: Part {
                path: kernel.initramfs.clone(),
                sha256: kernel.initramfs_sha256.clone(),
                hashed: Hashed::Whole,
            },
            base_disk: Part {
                path: image.disk.path.clone(),
                sha256: image.disk.digest.hex(),
                hashed: Hashed::List,
            },
            guest_sha256: GUEST_SHA256.to_owned(),
        },
        backend: options.backend,
        resources: plan.resources,
        network: options.network,
        hostname: plan.hostname.clone(),
        workload: workload.map(|workload| ExecRequest {
            // Its streams are those of the run that made it.
            tty: None,
            stdin: false,
            ..workload
        }),
        session: command::surroundings(options, &image.config)?,
        setup: options.setup.clone(),
        files: options.files.clone(),
        shell: options.shell_program.clone(),
        disks: Vec::new(),
        publish: options.wiring.publish.clone(),
        mediation: options.wiring.mediation.clone(),
        artifacts: options.outputs.clone(),
        restart: RestartPolicy::default(),
        health: None,
    })
}

/// Puts the scratch disk and, last, the manifest into a new workspace.
pub(crate) fn fill(directory: &Directory, manifest: &Manifest) -> Result<()> {
    let path = directory.scratch();
    microagent_image::disk::create_scratch(&path, manifest.resources.size_mib.0.into()).map_err(
        |error| Error::Scratch {
            path,
            reason: error.to_string(),
        },
    )?;
    manifest.write(directory.path())
}
