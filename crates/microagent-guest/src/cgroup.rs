//! The control group workloads live in, so that whatever they spawn leaves
//! room for the agent to report it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use crate::console;

const ROOT: &str = "/sys/fs/cgroup";

/// The group every session's process starts in.
#[derive(Debug)]
pub(crate) struct Workloads {
    folder: File,
    members: File,
    kill: Option<File>,
}

impl Workloads {
    /// Makes the group. A kernel without control groups runs workloads unbounded.
    pub(crate) fn create() -> Option<Self> {
        match Self::try_create(Path::new(ROOT)) {
            Ok(group) => Some(group),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                console::say(format_args!("make the workloads' control group: {error}"));
                None
            }
        }
    }

    fn try_create(root: &Path) -> io::Result<Self> {
        let controllers = root.join("cgroup.subtree_control");
        fs::write(&controllers, "+pids")?;
        // With it thousands of processes together weigh no more than the agent.
        // A kernel without it only makes the agent slower to answer then.
        let _ = fs::write(&controllers, "+cpu");
        let folder = root.join("workload");
        fs::create_dir(&folder)?;
        fs::write(folder.join("pids.max"), most_processes().to_string())?;
        Ok(Self {
            folder: File::open(&folder)?,
            members: OpenOptions::new()
                .write(true)
                .open(folder.join("cgroup.procs"))?,
            // Since Linux 5.14.
            kill: OpenOptions::new()
                .write(true)
                .open(folder.join("cgroup.kill"))
                .ok(),
        })
    }

    /// What a process is born into.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Where a process writes `0` to join.
    pub(crate) fn members(&self) -> RawFd {
        self.members.as_raw_fd()
    }

    /// Kills every member at once, faster than a fork bomb spawns.
    pub(crate) fn kill(&self) {
        if let Some(mut kill) = self.kill.as_ref() {
            // The signal to every process that follows is the fallback.
            let _ = io::Write::write_all(&mut kill, b"1");
        }
    }
}

/// Nine tenths of what the kernel allows.
fn most_processes() -> u64 {
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [
        read("/proc/sys/kernel/pid_max"),
        read("/proc/sys/kernel/threads-max"),
    ];
    let most = limits.into_iter().flatten().min().unwrap_or(4096);
    (most / 10 * 9).max(64)
}
