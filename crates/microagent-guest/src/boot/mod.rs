//! From the initramfs to a machine that serves sessions, step by step. It
//! knows the order; each step knows its own business.

pub(crate) mod disks;
pub(crate) mod identity;
mod modules;
mod mounts;
mod network;
mod root;
pub(crate) mod timer;

use std::{
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use microagent_protocol::guest::{BASE_SERIAL, BootConfig, DiskMount, SCRATCH_SERIAL};
use rustix::mount::{MountFlags, mount};

use self::modules::{Modules, Purpose};
pub(crate) use self::root::{OldRoot, WritableDisks};
use crate::{
    clock,
    control::{self, Event},
    error::{Context, Error},
};

/// A boot that cannot go on.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the agent was doing.
    pub(crate) stage: &'static str,
    /// What went wrong.
    pub(crate) error: Error,
}

/// Names the step an error belongs to.
trait Stage<T> {
    fn during(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T> Stage<T> for Result<T, Error> {
    fn during(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure { stage, error })
    }
}

/// What a finished boot leaves to the rest of the agent.
#[derive(Debug)]
pub(crate) struct Booted {
    /// The initramfs, to be freed.
    pub(crate) old_root: OldRoot,
    /// What is left of its modules.
    pub(crate) modules: Modules,
    /// The disks that must be clean in the end.
    pub(crate) disks: WritableDisks,
    /// What the host told.
    pub(crate) config: Box<BootConfig>,
}

/// The position of the first disk after base and scratch.
const FIRST_EXTRA: usize = 2;

/// From the first instruction to a machine that is what the host's configuration says, but for
/// what [`Booted::apply`] does. `kernel_ms` is when the kernel started the agent, and
/// everything the host says later arrives at `events`.
pub(crate) fn boot(
    kernel_ms: u64,
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Booted, Failure> {
    mounts::mount_early().during("mount the kernel's file systems")?;
    let settings = network::Settings::open().during("look at the network's settings")?;
    let modules = Modules::read(Path::new("/modules")).during("load the kernel modules")?;
    let mut failed = modules.load(Purpose::Ground);
    modules.retry(&modules.load(Purpose::Disks));
    // The root needs nothing of the host, and the host and the network nothing of the root.
    let (root, connected) = thread::scope(|scope| {
        let (overlay, loaded) = channel();
        let root = thread::Builder::new()
            .name("root".to_owned())
            .spawn_scoped(scope, move || make_root(&loaded))
            .context("start the thread that makes the root");
        let connected = connect(kernel_ms, sender, events, &modules, overlay, &settings);
        // A panic ends the machine.
        let root = root.map(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(Failure {
                    stage: "make the root",
                    error: Error::HostGone,
                })
            })
        });
        (root, connected)
    });
    let connected = connected?;
    let (old_root, disks) = root.during("make the root")??;
    failed.extend(&connected.failed);
    modules.retry(&failed);
    let config = connected.config;
    if !connected.configured {
        configure(&config, &settings)?;
    }
    clock::set(config.unix_nanos).during("set the clock")?;
    identity::seed(&config.entropy).during("seed the random number generator")?;
    Ok(Booted {
        old_root,
        modules,
        disks,
        config,
    })
}

/// What came of connecting to the host.
struct Connected<'m> {
    config: Box<BootConfig>,
    /// Modules that did not load yet.
    failed: Vec<&'m str>,
    /// Whether the network is what the host's configuration says.
    configured: bool,
}

/// Connects to the host, and makes the network what it says; needs nothing of the root.
fn connect<'m>(
    kernel_ms: u64,
    sender: Sender<Event>,
    events: &Receiver<Event>,
    modules: &'m Modules,
    overlay: Sender<()>,
    settings: &network::Settings,
) -> Result<Connected<'m>, Failure> {
    let mut failed = modules.load(Purpose::Link);
    control::start(kernel_ms, sender).during("connect to the host")?;
    // While the host answers and the disks are mounted.
    modules.retry(&modules.load(Purpose::Root));
    drop(overlay);
    failed.extend(modules.load(Purpose::Network));
    let config = control::configuration(events).during("receive the configuration")?;
    // Without its driver there is no interface to wait for.
    let configured = failed.is_empty();
    if configured {
        configure(&config, settings)?;
    }
    failed.extend(modules.load(Purpose::Late));
    Ok(Connected {
        config,
        failed,
        configured,
    })
}

/// The network. It is complete before anything is started in the machine.
fn configure(config: &BootConfig, settings: &network::Settings) -> Result<(), Failure> {
    network::raise_loopback().during("raise the loopback")?;
    settings.relax();
    match &config.network {
        Some(network) => settings.configure(network).during("configure the network"),
        None => Ok(()),
    }
}

/// Makes the root and enters it; needs nothing from the host but its disks.
/// Its overlay can be mounted once nobody can send to `overlay` any more.
fn make_root(overlay: &Receiver<()>) -> Result<(OldRoot, WritableDisks), Failure> {
    let base = disks::wait_for(BASE_SERIAL, Some(0)).during("find the base disk")?;
    root::mount_base(&base).during("mount the base disk")?;
    let scratch = disks::wait_for(SCRATCH_SERIAL, Some(1)).during("find the scratch disk")?;
    root::mount_scratch(&scratch).during("mount the scratch disk")?;
    // Nothing is ever sent.
    let _ = overlay.recv();
    let entered = root::enter().during("enter the root")?;
    mounts::mount_all().during("mount the root's file systems")?;
    Ok(entered)
}

impl Booted {
    /// What the machine's file systems are told of it.
    pub(crate) fn apply(&mut self) -> Result<(), Failure> {
        identity::apply(&self.config).during("take the host name")?;
        for (index, disk) in self.config.disks.iter().enumerate() {
            mount_extra(disk, index, &mut self.disks)
                .map_err(|error| Error::Disk {
                    name: disk.name.clone(),
                    mountpoint: disk.mountpoint.clone(),
                    source: Box::new(error),
                })
                .during("mount an extra disk")?;
        }
        Ok(())
    }
}

fn mount_extra(disk: &DiskMount, index: usize, disks: &mut WritableDisks) -> Result<(), Error> {
    let target = Path::new(&disk.mountpoint);
    if !target.is_absolute() {
        return Err(Error::Malformed {
            what: format!("the mount point {:?}", disk.mountpoint),
            why: "it is not absolute".to_owned(),
        });
    }
    let device = disks::wait_for(&disk.serial, Some(FIRST_EXTRA + index))?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(target)
        .context(format_args!("make the directory {}", target.display()))?;
    let flags = if disk.read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    mount(&device, target, "ext4", flags, None).context(format_args!(
        "mount {} at {}",
        device.display(),
        target.display()
    ))?;
    if disk.read_only {
        return Ok(());
    }
    disks.add(target)
}
