//! Locks of extra disks: a file system that is written by one machine is nobody else's.

use std::{
    fs::{self, File, Metadata},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt},
    path::Path,
};

use microagent_host::lock::{Lock, Sharing};
use microagent_protocol::{ExtraDisk, supervisor::MACHINE_LOCK};

use crate::Error;

/// The locks, held until dropped: shared on disks that are read, exclusive on those written.
#[derive(Debug)]
pub(crate) struct DiskLocks(#[expect(dead_code, reason = "held, not looked at")] Vec<Lock>);

impl DiskLocks {
    /// Takes the lock of every disk, or none.
    ///
    /// # Errors
    /// [`Error::DiskBusy`], naming who has it.
    pub(crate) fn take(disks: &[ExtraDisk]) -> Result<Self, Error> {
        let mut locks = Vec::new();
        for disk in disks {
            locks.push(take(disk)?);
        }
        Ok(Self(locks))
    }
}

fn take(disk: &ExtraDisk) -> Result<Lock, Error> {
    let file = File::options()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(&disk.path)
        .map_err(Error::file("open the disk", &disk.path))?;
    let meta = file
        .metadata()
        .map_err(Error::file("look at the disk", &disk.path))?;
    let sharing = if disk.read_only {
        Sharing::Shared
    } else {
        Sharing::Exclusive
    };
    Lock::now(file, sharing)
        .map_err(Error::file("lock the disk", &disk.path))?
        .ok_or_else(|| Error::DiskBusy {
            name: disk.name.to_string(),
            path: disk.path.clone(),
            holder: holder(&meta).unwrap_or_else(|| "another process".to_owned()),
            read_only: disk.read_only,
        })
}

/// Who holds a lock on a file, as far as the kernel tells.
fn holder(meta: &Metadata) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find_lock(&locks, meta.dev(), meta.ino())?;
    if pid == std::process::id() {
        return Some("this machine itself, which names it twice".to_owned());
    }
    // Each supervisor holds the lock of its workspace.
    let workspace = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()
        .and_then(|fds| {
            fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
                .find(|target| target.ends_with(MACHINE_LOCK))?
                .parent()
                .map(Path::to_owned)
        });
    Some(match workspace {
        Some(directory) => format!("the machine of {} (process {pid})", directory.display()),
        None => format!("process {pid}"),
    })
}

/// The process of the first lock on this file in the text of `/proc/locks`.
fn find_lock(locks: &str, device: u64, inode: u64) -> Option<u32> {
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    let (major, minor) = numbers(device);
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let flock = words.nth(1)? == "FLOCK";
        let pid = words.nth(2)?;
        (flock && words.next()? == file).then(|| pid.parse().ok())?
    })
}

/// The two numbers of a device.
fn numbers(device: u64) -> (u32, u32) {
    #[cfg(target_os = "linux")]
    {
        (rustix::fs::major(device), rustix::fs::minor(device))
    }
    // Nobody asks where there is no `/proc/locks`.
    #[cfg(not(target_os = "linux"))]
    {
        let _ = device;
        (0, 0)
    }
}

/// Says what is behind a lock that cannot be had, and what to do.
pub(crate) fn busy_remedy(read_only: bool) -> &'static str {
    if read_only {
        "End the machine that writes to it, or use a copy."
    } else {
        "End the machines that use it, attach it ro in all of them, or use a copy."
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn disk(path: &Path, read_only: bool) -> ExtraDisk {
        ExtraDisk {
            name: "data".parse().unwrap(),
            path: path.to_owned(),
            mountpoint: "/data".parse().unwrap(),
            read_only,
        }
    }

    #[test]
    fn many_may_read_and_one_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("d.ext4");
        fs::write(&path, "x").unwrap();
        let readers = DiskLocks::take(&[disk(&path, true), disk(&path, true)]).unwrap();
        let refused = DiskLocks::take(&[disk(&path, false)]).unwrap_err();
        let report = refused.report();
        assert!(report.message.contains("d.ext4"), "{report}");
        assert!(report.message.contains("itself"), "{report}");
        assert!(report.remedy.unwrap().contains("ro"));
        drop(readers);
        let _writer = DiskLocks::take(&[disk(&path, false)]).unwrap();
        assert!(DiskLocks::take(&[disk(&path, true)]).is_err());
    }

    #[test]
    fn the_kernels_list_of_locks_is_read() {
        let text = "1: POSIX  ADVISORY  WRITE 7 fe:00:5678 0 EOF\n\
                    2: FLOCK  ADVISORY  READ  8 fe:00:56780 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 9 fe:00:5678 0 EOF\n\
                    garbage\n";
        assert_eq!(find_lock(text, rustix::fs::makedev(0xfe, 0), 5678), Some(9));
        assert_eq!(find_lock(text, rustix::fs::makedev(0xfe, 1), 5678), None);
    }
}
