//! A cgroup of its own for a VMM, with limits, where this host delegated the controllers to this user
//! (cgroup v2; `Delegate=` of systemd). Nothing is moved that is not ours: the group is made below
//! this process's own or beside it, wherever the controllers are switched on already.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::MachineSpec;

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const PREFIX: &str = "microagent-vm-";
/// What a VMM may take beside its guest's memory: its code, its buffers, translated code under
/// emulation (at most 1 GiB), and the kernel's memory for it.
const OVERHEAD: u64 = 1536 * 1024 * 1024;
/// Threads of one VMM: vCPUs, and those that read and write its disks.
const TASKS: u32 = 512;
/// The period of `cpu.max`, in microseconds.
const PERIOD: u64 = 100_000;

/// What one VMM may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The guest's memory, in bytes.
    pub memory: u64,
    pub vcpus: u8,
}

impl Limits {
    pub(crate) fn of(spec: &MachineSpec) -> Self {
        Self {
            memory: spec.memory.bytes(),
            vcpus: spec.vcpus.get(),
        }
    }
}

/// A cgroup. Dropped once nothing is in it any more, it is gone.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes one with these limits and puts a process into it; otherwise says why not.
    pub(crate) fn hold(pid: u32, limits: &Limits) -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (own, top) = own_group(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
            .ok_or("this host has no cgroup v2")?;
        let beside = own.parent().filter(|parent| parent.starts_with(&top));
        let mut why = String::new();
        for place in [Some(own.as_path()), beside].into_iter().flatten() {
            match Self::make(place, limits).and_then(|group| group.add(pid)) {
                Ok(group) => return Ok(group),
                Err(reason) if why.is_empty() => why = reason,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// As `/proc/PID/cgroup` ends its line with it.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn make(place: &Path, limits: &Limits) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let on = fs::read_to_string(place.join("cgroup.subtree_control")).unwrap_or_default();
        let off: Vec<_> = CONTROLLERS
            .into_iter()
            .filter(|wanted| !on.split_ascii_whitespace().any(|have| have == *wanted))
            .collect();
        if !off.is_empty() {
            return Err(format!(
                "no {} controller is delegated to {}",
                off.join(", "),
                place.display()
            ));
        }
        sweep(place);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Self {
            path: place.join(format!("{PREFIX}{}-{number}", std::process::id())),
        };
        fs::create_dir(&group.path)
            .map_err(|error| format!("{} cannot be made: {error}", group.path.display()))?;
        let quota = (u64::from(limits.vcpus) + 1) * PERIOD;
        for (file, value) in [
            ("memory.max", (limits.memory + OVERHEAD).to_string()),
            ("pids.max", TASKS.to_string()),
            ("cpu.max", format!("{quota} {PERIOD}")),
        ] {
            group.write(file, &value)?;
        }
        Ok(group)
    }

    fn add(self, pid: u32) -> Result<Self, String> {
        self.write("cgroup.procs", &pid.to_string())?;
        Ok(self)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), String> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Removes groups of supervisors that were killed. One that has a process in it stays.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| {
            let (owner, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            owner.parse::<u32>().ok()
        });
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            // Another one may be at it as well.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// This process's group and the top of what is mounted of the hierarchy. `groups` is
/// `/proc/self/cgroup`, `mounts` `/proc/self/mountinfo`.
fn own_group(groups: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // proc_pid_mountinfo(5): number, parent, device, root, mount point, options, optional fields, -, type.
    let top = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let fields: Vec<&str> = before.split(' ').collect();
        (after.starts_with("cgroup2 ") && fields.get(3) == Some(&"/"))
            .then(|| fields.get(4).copied())?
    })?;
    let own = Path::new(top).join(path);
    let climbs = path.split('/').any(|part| part == "..");
    (!climbs).then(|| (own, PathBuf::from(top)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let mounts = "25 1 0:22 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n\
                      40 25 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        let (own, top) = own_group("4:memory:/a\n0::/user.slice/x\n", mounts).unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/unified/user.slice/x"));
        assert_eq!(top, Path::new("/sys/fs/cgroup/unified"));
        assert!(own_group("0::/a\n", "").is_none());
        assert!(own_group("4:memory:/a\n", mounts).is_none());
        assert!(own_group("0::/../a\n", mounts).is_none());
    }

    #[test]
    fn what_is_not_delegated_is_named_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "memory pids\n").unwrap();
        let why = Group::make(dir.path(), &Limits::default()).unwrap_err();
        assert!(why.contains("no cpu controller"), "{why}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// On a kernel that lets us. The tests' own host has its controllers elsewhere; this was seen
    /// to pass in a guest, as root, with the controllers on.
    #[test]
    fn a_process_is_held_by_its_group_and_the_group_goes_with_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let limits = Limits {
            memory: 64 << 20,
            vcpus: 1,
        };
        match Group::hold(child.id(), &limits) {
            Ok(group) => {
                let line = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
                assert!(line.trim_end().ends_with(&group.name()), "{line}");
                let max = fs::read_to_string(group.path.join("memory.max")).unwrap();
                assert_eq!(max.trim(), ((64 << 20) + OVERHEAD).to_string());
                let cpu = fs::read_to_string(group.path.join("cpu.max")).unwrap();
                assert_eq!(cpu.trim(), "200000 100000");
                let path = group.path.clone();
                child.kill().unwrap();
                child.wait().unwrap();
                drop(group);
                assert!(!path.exists());
                println!("held in {}", path.display());
            }
            Err(why) => {
                testkit::skip_test(why);
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
}
