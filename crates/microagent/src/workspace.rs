//! A workspace's directories: made for a run, removed after it, and what dead runs left behind.
//!
//! A run holds an advisory lock on its directory for as long as it lives; a directory of a run
//! that nobody holds was left behind by a program that was killed.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use microagent_protocol::{NetworkMode, Timestamp, WorkspaceName, exec::ExecRequest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error::{Error, IoContext, Result},
    files::{self, Durability},
    name,
    options::Resources,
    result::{ImageInfo, KernelInfo},
};

/// The version of [`Manifest`].
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const SCRATCH: &str = "scratch.ext4";
const LOCK: &str = ".lock";
const TRASH: &str = ".trash-";

/// The longest run-time directory that leaves room for `/<8 hex>/` and the sockets' names in the
/// 107 bytes a socket's path may have.
const MAX_RUNTIME_DIR: usize = 72;

/// `manifest.json`: what a workspace is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) name: WorkspaceName,
    /// Whether it goes with the run that made it.
    pub(crate) ephemeral: bool,
    pub(crate) created_at: Timestamp,
    pub(crate) image: ImageInfo,
    pub(crate) kernel: KernelInfo,
    pub(crate) resources: Resources,
    pub(crate) network: NetworkMode,
    pub(crate) hostname: String,
    pub(crate) workload: ExecRequest,
    /// Where its sockets are while it runs.
    pub(crate) runtime_dir: PathBuf,
}

impl Manifest {
    pub(crate) const fn format() -> u32 {
        FORMAT
    }
}

/// The directories of one run. Dropping it removes them, unless it is kept.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) directory: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    keep: bool,
    _lock: File,
}

impl Workspace {
    /// Makes and locks the directories of `name`.
    pub(crate) fn create(config: &Config, name: &WorkspaceName) -> Result<Self> {
        let root = config.workspaces_dir();
        files::private_dir(&root)?;
        let runtime_root = &config.runtime_dir;
        check_runtime_dir(runtime_root)?;

        let directory = root.join(name.as_str());
        let gate = gate(&root)?;
        flock(&gate, FlockOperation::LockExclusive).context("lock", &root)?;
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken {
                    name: name.to_string(),
                });
            }
            Err(source) => {
                return Err(Error::Io {
                    doing: "create",
                    path: directory,
                    source,
                });
            }
        }
        let lock = File::open(&directory).context("open", &directory)?;
        flock(&lock, FlockOperation::LockExclusive).context("lock", &directory)?;
        drop(gate);

        let mut workspace = Self {
            directory,
            runtime_dir: PathBuf::new(),
            keep: false,
            _lock: lock,
        };
        workspace.runtime_dir = make_runtime_dir(runtime_root)?;
        Ok(workspace)
    }

    /// Where the scratch disk goes.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// Records what the workspace is made of.
    pub(crate) fn write_manifest(&self, manifest: &Manifest) -> Result<()> {
        let durability = if manifest.ephemeral {
            Durability::Unsynced
        } else {
            Durability::Synced
        };
        files::write_json(&self.directory.join(MANIFEST), manifest, durability)
    }

    /// Leaves the workspace where it is.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.runtime_dir.as_os_str().is_empty() {
            remove_tree(&self.runtime_dir);
            if let Some(root) = self.runtime_dir.parent() {
                // The last run takes the directory with it; others still have theirs in it.
                let _ = fs::remove_dir(root);
            }
        }
        if !self.keep {
            remove_tree(&self.directory);
        }
    }
}

/// The digest of the image that the workspace in `directory` is made of.
pub(crate) fn image_of(directory: &Path) -> Option<String> {
    let bytes = fs::read(directory.join(MANIFEST)).ok()?;
    serde_json::from_slice::<Manifest>(&bytes)
        .ok()
        .map(|manifest| manifest.image.digest)
}

fn check_runtime_dir(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length <= MAX_RUNTIME_DIR && path.is_absolute() {
        return Ok(());
    }
    Err(Error::invalid(
        "the run-time directory",
        format!(
            "{} has {length} bytes; sockets need an absolute path of at most {MAX_RUNTIME_DIR}",
            path.display()
        ),
    ))
}

fn make_runtime_dir(root: &Path) -> Result<PathBuf> {
    loop {
        files::private_dir(root)?;
        let path = root.join(name::random_hex()?);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Another run ended just now and took the empty directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Io {
                    doing: "create",
                    path,
                    source,
                });
            }
        }
    }
}

/// Orders making directories and sweeping them.
fn gate(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .context("open", &path)
}

/// Removes what runs left behind whose program was killed. Problems are logged: they are no
/// reason not to run.
pub(crate) fn sweep(config: &Config) {
    if let Err(error) = try_sweep(&config.workspaces_dir(), &config.runtime_dir) {
        tracing::warn!("leftovers were not removed: {error}");
    }
}

fn try_sweep(root: &Path, runtime_root: &Path) -> Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Io {
                doing: "list",
                path: root.to_owned(),
                source,
            });
        }
    };
    let gate = gate(root)?;
    if flock(&gate, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(()); // Somebody else is at it.
    }
    let mut doomed = Vec::new();
    for entry in entries {
        let path = entry.context("list", root)?.path();
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if file_name.starts_with(TRASH) {
            doomed.push(path);
        } else if file_name.parse::<WorkspaceName>().is_ok() && is_left_behind(&path, runtime_root)
        {
            // Out of the way at once, removed after the lock is let go.
            let trash = root.join(format!("{TRASH}{}", name::random_hex()?));
            fs::rename(&path, &trash).context("rename", &path)?;
            doomed.push(trash);
        }
    }
    drop(gate);
    for path in doomed {
        remove_tree(&path);
    }
    Ok(())
}

/// Whether nobody holds `directory` and it was not meant to stay. Its sockets go at once.
fn is_left_behind(directory: &Path, runtime_root: &Path) -> bool {
    let Ok(held) = File::open(directory) else {
        return false;
    };
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    let manifest = match fs::read(directory.join(MANIFEST)) {
        Ok(bytes) => serde_json::from_slice::<Manifest>(&bytes).ok(),
        // Killed before it was written: a workspace without one is none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => return false,
    };
    match manifest {
        Some(manifest) if manifest.ephemeral => {
            if manifest.runtime_dir.parent() == Some(runtime_root) {
                remove_tree(&manifest.runtime_dir);
            }
            true
        }
        _ => false,
    }
}

/// Removes a tree of our own; what is gone already is fine.
fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{} was not removed: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SupervisorProgram;

    fn config(base: &Path) -> Config {
        Config::new(
            base.join("state"),
            base.join("run"),
            SupervisorProgram::ThisProgram,
        )
    }

    fn manifest(workspace: &Workspace, ephemeral: bool) -> Manifest {
        Manifest {
            format: FORMAT,
            name: "a".parse().unwrap(),
            ephemeral,
            created_at: std::time::SystemTime::now().into(),
            image: ImageInfo {
                reference: "r".into(),
                digest: "d".into(),
                platform: "linux/amd64".into(),
            },
            kernel: KernelInfo {
                id: "k".into(),
                release: "6".into(),
                sha256: "s".into(),
            },
            resources: crate::RunOptions::new("r").resources(),
            network: NetworkMode::User,
            hostname: "a".into(),
            workload: crate::command::workload(
                &crate::RunOptions::new("r").command(["x"]),
                &microagent_image::ImageConfig::default(),
                false,
            )
            .unwrap(),
            runtime_dir: workspace.runtime_dir.clone(),
        }
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != LOCK)
            .count()
    }

    #[test]
    fn a_run_leaves_nothing_and_a_kept_one_its_directory() {
        let base = tempfile::tempdir().unwrap();
        let config = config(base.path());
        let name = "a".parse().unwrap();
        let workspace = Workspace::create(&config, &name).unwrap();
        assert!(workspace.directory.is_dir() && workspace.runtime_dir.is_dir());
        let taken = Workspace::create(&config, &name).unwrap_err();
        assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
        drop(workspace);
        assert!(count(&config.workspaces_dir()) == 0 && !config.runtime_dir.exists());

        Workspace::create(&config, &name).unwrap().keep();
        assert!(count(&config.workspaces_dir()) == 1 && !config.runtime_dir.exists());
    }

    #[test]
    fn only_what_dead_runs_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let config = config(base.path());
        let abandon = |name: &str, written: Option<bool>| {
            let workspace = Workspace::create(&config, &name.parse().unwrap()).unwrap();
            if let Some(ephemeral) = written {
                workspace
                    .write_manifest(&manifest(&workspace, ephemeral))
                    .unwrap();
            }
            // As when the program is killed: locks go, files stay.
            let (directory, runtime) = (workspace.directory.clone(), workspace.runtime_dir.clone());
            drop(workspace);
            (directory, runtime)
        };
        let restore = |(directory, runtime): &(PathBuf, PathBuf), ephemeral: Option<bool>| {
            fs::create_dir_all(directory).unwrap();
            fs::create_dir_all(runtime).unwrap();
            let fake = Workspace {
                directory: directory.clone(),
                runtime_dir: runtime.clone(),
                keep: true,
                _lock: File::open(directory).unwrap(),
            };
            if let Some(ephemeral) = ephemeral {
                fake.write_manifest(&manifest(&fake, ephemeral)).unwrap();
            }
            std::mem::forget(fake.runtime_dir.clone());
            std::mem::forget(fake);
        };
        let dead = abandon("dead", Some(true));
        restore(&dead, Some(true));
        let unborn = abandon("unborn", None);
        restore(&unborn, None);
        let kept = abandon("kept", Some(false));
        restore(&kept, Some(false));
        let live = Workspace::create(&config, &"live".parse().unwrap()).unwrap();
        live.write_manifest(&manifest(&live, true)).unwrap();

        try_sweep(&config.workspaces_dir(), &config.runtime_dir).unwrap();
        assert!(!dead.0.exists() && !dead.1.exists() && !unborn.0.exists());
        assert!(kept.0.exists() && live.directory.exists() && live.runtime_dir.exists());
        assert_eq!(count(&config.workspaces_dir()), 2);
    }

    #[test]
    fn a_run_time_directory_too_long_for_sockets_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let mut config = config(base.path());
        config.runtime_dir = base.path().join("x".repeat(80));
        let error = Workspace::create(&config, &"a".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }
}
