//! The directories of machines' sockets: one for each machine, below one that all share.

use std::{
    fs::{self, DirBuilder},
    io,
    path::{Path, PathBuf},
};

use microagent_host::fs::Private;

use super::{Leftover, LeftoverKind, leftover, remove_tree};
use crate::{
    config::Config,
    error::{Error, Result},
    files, name,
    workspaces::machine::MachineRecord,
};

/// The longest run-time directory that leaves room for `/<8 hex>/` and the sockets' names in the
/// 107 bytes a socket's path may have.
const MAX_RUNTIME_DIR: usize = 72;

/// How often one that goes at once is made again, before it is taken for one that cannot be made.
const TRIES: u32 = 100;

/// A private directory for one machine's sockets. Dropping it removes it, unless a supervisor,
/// which removes it in the end, has taken it over.
#[derive(Debug)]
pub(crate) struct RuntimeDirectory {
    path: PathBuf,
    handed_over: bool,
}

impl RuntimeDirectory {
    /// Makes a new one for the workspace in `directory`.
    ///
    /// It is recorded there before it is made: one that a kill leaves is found by its record.
    pub(crate) fn make(config: &Config, directory: &Path) -> Result<Self> {
        let root = &config.runtime_dir;
        check(root)?;
        loop {
            let path = root.join(name::random_hex()?);
            if path.exists() {
                continue; // Another machine's: it must not be recorded as ours.
            }
            let record = MachineRecord {
                runtime_dir: path.clone(),
                supervisor: None,
            };
            record.write(directory)?;
            make_root(root)?;
            match DirBuilder::new().private().create(&path) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        handed_over: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // Another machine ended just now and took the empty directory with it.
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

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it to a supervisor.
    pub(crate) fn hand_over(mut self) {
        self.handed_over = true;
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        if !self.handed_over {
            remove_runtime(&self.path);
        }
    }
}

/// Removes the runtime directory of a machine that is gone.
pub(crate) fn remove_runtime(path: &Path) {
    remove_tree(path);
    if let Some(root) = path.parent() {
        remove_root(root);
    }
}

/// Makes the directory above those of the machines. Others may remove it again at any instant.
pub(crate) fn make_root(root: &Path) -> Result<()> {
    let mut tries = 1..=TRIES;
    loop {
        match files::private_dir(root) {
            // It went before it was looked at.
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
            made => return made,
        }
    }
}

/// Removes the directory above those of the machines with the last of them; gives whether it did.
///
/// It is made again when it is needed, and others may still have theirs in it.
pub(crate) fn remove_root(root: &Path) -> bool {
    fs::remove_dir(root).is_ok()
}

/// The directory above those of the machines where a kill left it empty: between the removal of the
/// last of them and its own. Removes it unless this is only a look.
pub(super) fn collect_root(root: &Path, dry_run: bool) -> Option<Leftover> {
    if fs::read_dir(root).ok()?.next().is_some() {
        return None;
    }
    let found = leftover(root, LeftoverKind::Sockets);
    (dry_run || remove_root(root)).then_some(found)
}

fn check(path: &Path) -> Result<()> {
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
