//! The root: base and scratch joined by overlayfs, and the way over to it.

use std::{
    fs,
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat},
    mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount},
    process::{chdir, chroot, fchdir},
};

use super::modules::{Modules, Purpose};
use crate::error::{Context, Error};

const BASE: &str = "/base";
const SCRATCH: &str = "/scratch";
const NEW_ROOT: &str = "/newroot";

/// Upper and work directory belong to one file system, and the features are
/// named so that the upper directory stays a plain layer whatever the kernel's
/// defaults are.
const OVERLAY: &std::ffi::CStr = c"lowerdir=/base,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=off,metacopy=off,index=off";

/// How long a machine that has just booted has something better to do.
const BUSY: Duration = Duration::from_millis(500);

/// The initramfs seen from the new root, to be emptied when there is time.
#[derive(Debug)]
pub(crate) struct OldRoot(OwnedFd);

/// The disks to leave clean: the scratch disk, whose own mount no path of the
/// new root leads to, and extra ones.
#[derive(Debug)]
pub(crate) struct WritableDisks {
    scratch: OwnedFd,
    extra: Vec<OwnedFd>,
}

/// Mounts the base disk, which never changes.
pub(crate) fn mount_base(device: &Path) -> Result<(), Error> {
    make_directory(BASE)?;
    mount(device, BASE, "ext4", MountFlags::RDONLY, None)
        .context(format_args!("mount {} (ext4, read-only)", device.display()))
}

/// Mounts the scratch disk, which takes every change.
pub(crate) fn mount_scratch(device: &Path) -> Result<(), Error> {
    make_directory(SCRATCH)?;
    // A sparse file reads as zeros, so the inode tables need no zeroing in the background.
    mount(
        device,
        SCRATCH,
        "ext4",
        MountFlags::empty(),
        c"noinit_itable",
    )
    .context(format_args!("mount {} (ext4)", device.display()))?;
    make_directory("/scratch/upper")?;
    make_directory("/scratch/work")
}

/// Joins the two and makes the result the root of this process.
pub(crate) fn enter() -> Result<(OldRoot, WritableDisks), Error> {
    make_directory(NEW_ROOT)?;
    mount(
        "microagent",
        NEW_ROOT,
        "overlay",
        MountFlags::empty(),
        OVERLAY,
    )
    .context("mount the overlay of base and scratch")?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = openat(CWD, "/", flags, Mode::empty()).context("open the initramfs")?;
    let scratch = openat(CWD, SCRATCH, flags, Mode::empty()).context("open the scratch disk")?;
    // The new root gets its own.
    for path in ["/proc", "/sys", "/dev"] {
        unmount(path, UnmountFlags::DETACH).context(format_args!("unmount {path}"))?;
    }
    chdir(NEW_ROOT).context("enter the new root")?;
    mount_move(".", "/").context("move the new root")?;
    chroot(".").context("change the root")?;
    chdir("/").context("enter the root")?;
    let extra = Vec::new();
    Ok((OldRoot(old), WritableDisks { scratch, extra }))
}

impl OldRoot {
    /// Loads the modules that nobody waits for, and then frees the memory of the initramfs: its files have
    /// done their part. Directories other file systems are mounted on stay; they cost nothing.
    pub(crate) fn empty_later(self, modules: Modules) {
        // Where no thread can be started, the memory stays as it is.
        let _ = thread::Builder::new()
            .name("old-root".to_owned())
            .stack_size(crate::THREAD_STACK)
            .spawn(move || {
                thread::sleep(BUSY);
                modules.retry(&modules.load(Purpose::Afterwards));
                drop(modules);
                remove_files(self.0.as_fd(), 0);
            });
    }
}

fn remove_files(folder: impl AsFd, depth: u32) {
    // What cannot be removed only wastes a little memory.
    let Ok(entries) = Dir::read_from(&folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            let _ = unlinkat(&folder, name, AtFlags::empty());
        } else if depth < 4
            // Only directories of the initramfs itself, never a mounted disk.
            && !matches!(name.to_bytes(), b"base" | b"scratch" | b"newroot" | b"sys" | b"dev" | b"proc")
            && let Ok(inner) = openat(
                &folder,
                name,
                OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        {
            remove_files(inner, depth + 1);
            let _ = unlinkat(&folder, name, AtFlags::REMOVEDIR);
        }
    }
}

impl WritableDisks {
    /// Adds the disk that is mounted at `mountpoint`.
    pub(crate) fn add(&mut self, mountpoint: &Path) -> Result<(), Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let disk = openat(CWD, mountpoint, flags, Mode::empty())
            .context(format_args!("open {}", mountpoint.display()))?;
        self.extra.push(disk);
        Ok(())
    }

    /// Makes everything durable and the disks clean. No process may hold a
    /// file open for writing.
    pub(crate) fn close(&self) -> Result<(), Error> {
        // Every disk gets its chance; the first failure is the one to report.
        let extra = self.extra.iter().map(|disk| close(disk, "an extra disk"));
        let extra = extra.fold(Ok(()), Result::and);
        // The overlay first: afterwards nothing can reach the scratch disk.
        mount_remount("/", MountFlags::RDONLY, c"").context("remount the root read-only")?;
        close(&self.scratch, "the scratch disk").and(extra)
    }
}

/// Read-only is as clean as unmounted, and needs no path to it.
fn close(disk: &OwnedFd, name: &str) -> Result<(), Error> {
    fchdir(disk).context(format_args!("enter {name}"))?;
    mount_remount(".", MountFlags::RDONLY, c"").context(format_args!("remount {name} read-only"))
}

fn make_directory(path: &str) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.context(format_args!("make the directory {path}")),
    }
}
