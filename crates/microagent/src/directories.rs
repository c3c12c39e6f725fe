//! A workspace's directories: made under its name, removed when they are not kept, and what dead
//! programs left behind.
//!
//! A run holds an advisory lock on its directory for as long as it lives; a directory of a run
//! that nobody holds was left behind by a program that was killed.

mod runtime;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, DirBuilder, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use microagent_host::{
    fs::Private,
    lock::{Lock, Sharing},
};
use microagent_image::Bytes;
use microagent_protocol::WorkspaceName;
use serde::Serialize;

pub(crate) use self::runtime::{RuntimeDirectory, make_root, remove_root, remove_runtime};
use crate::{
    config::Config,
    error::{Error, IoContext, Result},
    files, name,
    workspaces::{
        history::EVENTS,
        machine::{self, AtRest},
        manifest::{MANIFEST, Manifest},
    },
};

/// The workspace's own disk in its directory.
pub(crate) const SCRATCH: &str = "scratch.ext4";
const LOCK: &str = ".lock";
const TRASH: &str = ".trash-";

/// The directory of a new workspace, held by its maker. Dropping it removes it, unless it is kept.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    keep: bool,
    _held: Held,
}

impl Directory {
    /// Makes and holds the directory of `name`.
    pub(crate) fn create(config: &Config, name: &WorkspaceName) -> Result<Self> {
        let root = config.workspaces_dir();
        files::private_dir(&root)?;
        let path = root.join(name.as_str());
        let gate = gate(&root)?;
        match DirBuilder::new().private().create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken {
                    name: name.to_string(),
                });
            }
            Err(source) => {
                return Err(Error::Io {
                    doing: "create",
                    path,
                    source,
                });
            }
        }
        let held = Held::now(&path)?.ok_or_else(|| Error::NameTaken {
            name: name.to_string(),
        })?;
        drop(gate);
        Ok(Self {
            path,
            keep: false,
            _held: held,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the scratch disk goes.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.path.join(SCRATCH)
    }

    /// Leaves the workspace where it is.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            // In this order, so that whatever a kill leaves of it is whole or nobody's: without a
            // history it is what its manifest says, and without both it was never made.
            for name in [EVENTS, MANIFEST] {
                let path = self.path.join(name);
                tell(&path, fs::remove_file(&path));
            }
            remove_tree(&self.path);
        }
    }
}

/// The right to change a workspace: an advisory lock on its directory. It goes with the process.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held, not looked at")] Lock);

impl Held {
    /// Takes it unless somebody has it.
    pub(crate) fn now(directory: &Path) -> Result<Option<Self>> {
        let file = File::open(directory).context("open", directory)?;
        let lock = Lock::now(file, Sharing::Exclusive).context("lock", directory)?;
        Ok(lock.map(Self))
    }

    /// Takes it, waiting for others at most `limit`.
    pub(crate) fn within(directory: &Path, limit: Duration) -> Result<Option<Self>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(held) = Self::now(directory)? {
                return Ok(Some(held));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Takes the name of a workspace away at once; what it was is removed from where it went.
pub(crate) fn discard(root: &Path, directory: &Path) -> Result<()> {
    let gate = gate(root)?;
    let trash = root.join(format!("{TRASH}{}", name::random_hex()?));
    fs::rename(directory, &trash).context("rename", directory)?;
    drop(gate);
    match fs::remove_dir_all(&trash) {
        // A sweep was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context("remove", &trash),
    }
}

/// While it lives no workspace's directory appears or goes; `None` where there are no workspaces at all.
pub(crate) fn still(config: &Config) -> Result<Option<Lock>> {
    let root = config.workspaces_dir();
    match root.try_exists().context("look at", &root)? {
        true => gate(&root).map(Some),
        false => Ok(None),
    }
}

/// What is in a directory; `None` if it is not there.
fn list(directory: &Path) -> Result<Option<fs::ReadDir>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(source).context("list", directory),
    }
}

/// The directories that have a workspace's name.
pub(crate) fn named(config: &Config) -> Result<Vec<(WorkspaceName, PathBuf)>> {
    let root = config.workspaces_dir();
    let Some(entries) = list(&root)? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.context("list", &root)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.and_then(|name| name.parse().ok()) {
            all.push((name, path));
        }
    }
    all.sort();
    Ok(all)
}

/// Orders making directories and sweeping them.
fn gate(root: &Path) -> Result<Lock> {
    Lock::wait(gate_file(root)?, Sharing::Exclusive, || ()).context("lock", root)
}

fn gate_file(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    File::options()
        .create(true)
        .append(true)
        .private()
        .open(&path)
        .context("open", &path)
}

/// Something that a program left behind when it was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Where it is.
    pub path: PathBuf,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
    /// What it is.
    pub what: LeftoverKind,
}

/// What kind of thing was left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// A workspace that was half deleted.
    Deleted,
    /// A workspace that was half made, or whose run was to remove it.
    Abandoned,
    /// The sockets of a machine that is gone, or the empty directory for all of them.
    Sockets,
}

/// Removes what runs left behind whose program was killed. Problems are logged: they are no
/// reason not to run.
pub(crate) fn sweep(config: &Config) {
    if let Err(error) = collect(config, false) {
        tracing::warn!("leftovers were not removed: {error}");
    }
}

/// Finds what was left behind, and removes it unless this is only a look.
pub(crate) fn collect(config: &Config, dry_run: bool) -> Result<Vec<Leftover>> {
    let mut found = collect_workspaces(config, dry_run)?;
    found.extend(runtime::collect_root(&config.runtime_dir, dry_run));
    Ok(found)
}

fn collect_workspaces(config: &Config, dry_run: bool) -> Result<Vec<Leftover>> {
    let root = config.workspaces_dir();
    let Some(entries) = list(&root)? else {
        return Ok(Vec::new());
    };
    let gate = Lock::now(gate_file(&root)?, Sharing::Exclusive).context("lock", &root)?;
    let Some(gate) = gate else {
        return Ok(Vec::new()); // Somebody else is at it.
    };
    let mut found = Vec::new();
    let mut doomed = Vec::new();
    for entry in entries {
        let path = entry.context("list", &root)?.path();
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if file_name.starts_with(TRASH) {
            found.push(leftover(&path, LeftoverKind::Deleted));
            doomed.push(path);
            continue;
        }
        if file_name.parse::<WorkspaceName>().is_err() {
            continue;
        }
        let held = match Held::now(&path) {
            Ok(Some(held)) => held,
            Ok(None) => continue,
            // Whoever made it has removed it by now.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let Some(at_rest) = AtRest::keep(&path) else {
            continue;
        };
        if let Some(runtime) = machine::dead_runtime(&path) {
            found.push(leftover(&runtime, LeftoverKind::Sockets));
            if !dry_run {
                remove_runtime(&runtime);
            }
        }
        if is_left_behind(&path) {
            let abandoned = leftover(&path, LeftoverKind::Abandoned);
            if !dry_run {
                // Out of the way at once, removed after the lock is let go.
                let trash = root.join(format!("{TRASH}{}", name::random_hex()?));
                match fs::rename(&path, &trash) {
                    Ok(()) => doomed.push(trash),
                    // Whoever made it was about to remove it, and has.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(source) => return Err(source).context("rename", &path),
                }
            }
            found.push(abandoned);
        }
        drop((held, at_rest));
    }
    drop(gate);
    if !dry_run {
        for path in doomed {
            remove_tree(&path);
        }
    }
    Ok(found)
}

fn leftover(path: &Path, what: LeftoverKind) -> Leftover {
    Leftover {
        path: path.to_owned(),
        bytes: bytes_of(path).allocated_bytes,
        what,
    }
}

/// What a tree takes on the disk; what cannot be looked at counts nothing.
pub(crate) fn bytes_of(path: &Path) -> Bytes {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Bytes::default();
    };
    let mut bytes = Bytes::of(&metadata);
    if metadata.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        bytes += entries.map(|entry| bytes_of(&entry.path())).sum();
    }
    bytes
}

/// Whether the workspace in `directory`, which nobody holds, was not meant to stay.
fn is_left_behind(directory: &Path) -> bool {
    match Manifest::read(directory) {
        Ok(manifest) => manifest.ephemeral,
        // Killed before it was written, and never booted: a workspace without one is none.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            !directory.join(EVENTS).exists()
        }
        // Torn, but somebody's: it is theirs to delete.
        Err(_) => false,
    }
}

/// Removes a tree of our own; what is gone already is fine.
fn remove_tree(path: &Path) {
    tell(path, fs::remove_dir_all(path));
}

fn tell(path: &Path, removed: io::Result<()>) {
    match removed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{} was not removed: {error}", path.display()),
    }
}
