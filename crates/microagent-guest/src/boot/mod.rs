//! From the initramfs to a machine that serves sessions, step by step. It
//! knows the order; each step knows its own business.

pub(crate) mod disks;
mod identity;
mod modules;
mod mounts;
mod network;
mod root;
pub(crate) mod timer;

use std::{
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::mpsc::{Receiver, Sender},
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
    /// The disks that must be clean in the end.
    pub(crate) disks: WritableDisks,
    /// What the host told.
    pub(crate) config: Box<BootConfig>,
}

/// The position of the first disk after base and scratch.
const FIRST_EXTRA: usize = 2;

/// From the first instruction to a machine that is what the host's
/// configuration says. `kernel_ms` is when the kernel started the agent, and
/// everything the host says later arrives at `events`.
pub(crate) fn boot(
    kernel_ms: u64,
    sender: Sender<Event>,
    events: &Receiver<Event>,
) -> Result<Booted, Failure> {
    mounts::mount_early().during("mount the kernel's file systems")?;
    let modules = Modules::read(Path::new("/modules")).during("load the kernel modules")?;
    let mut failed = modules.load(Purpose::Ground);
    // The link to the host and the root need nothing of each other.
    let (root, linked) = thread::scope(|scope| {
        let linking = thread::Builder::new()
            .name("link".to_owned())
            .stack_size(crate::THREAD_STACK)
            .spawn_scoped(scope, || {
                let mut failed = modules.load(Purpose::Link);
                let started = control::start(kernel_ms, sender);
                // While the host answers.
                failed.extend(modules.load(Purpose::Late));
                started.map(|()| failed)
            })
            .context("start the link thread");
        let root = make_root(&modules);
        let linked = linking.and_then(|thread| thread.join().unwrap_or(Err(Error::HostGone)));
        (root, linked)
    });
    failed.extend(linked.during("connect to the host")?);
    let (old_root, mut disks) = root?;
    modules.retry(&failed);
    let config = control::configuration(events).during("receive the configuration")?;
    apply(&config, &mut disks)?;
    Ok(Booted {
        old_root,
        disks,
        config,
    })
}

/// Makes the root and enters it; needs nothing from the host but its disks.
fn make_root(modules: &Modules) -> Result<(OldRoot, WritableDisks), Failure> {
    let failed = modules.load(Purpose::Root);
    modules.retry(&failed);
    let base = disks::wait_for(BASE_SERIAL, Some(0)).during("find the base disk")?;
    root::mount_base(&base).during("mount the base disk")?;
    let scratch = disks::wait_for(SCRATCH_SERIAL, Some(1)).during("find the scratch disk")?;
    root::mount_scratch(&scratch).during("mount the scratch disk")?;
    let entered = root::enter().during("enter the root")?;
    mounts::mount_all().during("mount the root's file systems")?;
    network::raise_loopback().during("raise the loopback")?;
    network::relax();
    Ok(entered)
}

fn apply(config: &BootConfig, disks: &mut WritableDisks) -> Result<(), Failure> {
    clock::set(config.unix_nanos).during("set the clock")?;
    identity::seed(&config.entropy).during("seed the random number generator")?;
    identity::apply(config).during("take the host name")?;
    for (index, disk) in config.disks.iter().enumerate() {
        mount_extra(disk, index, disks)
            .map_err(|error| Error::Disk {
                name: disk.name.clone(),
                mountpoint: disk.mountpoint.clone(),
                source: Box::new(error),
            })
            .during("mount an extra disk")?;
    }
    if let Some(settings) = &config.network {
        network::configure(settings).during("configure the network")?;
    }
    Ok(())
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
