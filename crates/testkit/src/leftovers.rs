//! What a command left behind: processes, sockets, directories.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// Processes, sockets and files that should not be there.
#[derive(Debug)]
pub struct Leftovers {
    state: PathBuf,
    runtime: PathBuf,
    marker: String,
    names: Vec<String>,
}

impl Leftovers {
    pub(crate) fn find(state: &Path, runtime: &Path, marker: &str, names: Vec<String>) -> Self {
        Self {
            state: state.into(),
            runtime: runtime.into(),
            marker: marker.into(),
            names,
        }
    }

    /// Panics unless, before long, nothing is left of this sandbox: no
    /// process, nothing in the runtime directory, and no workspace of its runs or of `names`.
    pub fn none(&self, names: &[&str]) {
        let mut last = String::new();
        eventually(
            Duration::from_secs(30),
            "the end of the last leftover",
            || {
                let left = self.list(names);
                if left.is_empty() {
                    return Some(());
                }
                if left != last {
                    eprintln!("still there: {left}");
                    last = left;
                }
                None
            },
        );
    }

    fn list(&self, names: &[&str]) -> String {
        let mut left: Vec<String> = self
            .processes_of(names)
            .iter()
            .map(|pid| describe(*pid))
            .collect();
        left.extend(
            entries(&self.runtime)
                .into_iter()
                .map(|path| path.display().to_string()),
        );
        for name in names
            .iter()
            .copied()
            .chain(self.names.iter().map(String::as_str))
        {
            let dir = self.state.join("workspaces").join(name);
            if dir.exists() {
                left.push(dir.display().to_string());
            }
        }
        left.join(", ")
    }

    /// The numbers of all processes that this sandbox's commands started.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        self.processes_of(&[])
    }

    /// A VMM has an empty environment; it is known by the workspace's name among its arguments.
    fn processes_of(&self, names: &[&str]) -> Vec<u32> {
        let runtime = self.runtime.display().to_string();
        let own = std::process::id();
        entries(Path::new("/proc"))
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != own)
            .filter(|pid| {
                let read = |file| {
                    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    String::from_utf8_lossy(&bytes).into_owned()
                };
                let (cmdline, environ) = (read("cmdline"), read("environ"));
                cmdline.contains(&runtime)
                    || environ.contains(&runtime)
                    || environ.contains(&format!("MICROAGENT_TEST_ID={}\0", self.marker))
                    || cmdline.contains(&format!("{}-", self.marker))
                    || names.iter().any(|name| cmdline.contains(name))
            })
            .collect()
    }

    /// Ends all of these processes; those that ended meanwhile are fine.
    pub(crate) fn kill(&self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ended_already = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// The processes whose executable's name contains `name`.
    #[must_use]
    pub fn processes_named(&self, name: &str) -> Vec<u32> {
        self.processes()
            .into_iter()
            .filter(|pid| describe(*pid).contains(name))
            .collect()
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().map(|entry| entry.path()).collect(),
    )
}

fn describe(pid: u32) -> String {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = cmdline
        .split(|byte| *byte == 0)
        .take(2)
        .map(String::from_utf8_lossy)
        .collect();
    format!("process {pid} ({})", words.join(" "))
}
