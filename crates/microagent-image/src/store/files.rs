//! Writing files so that a crash leaves either the old state or the new one, and only reclaimable rests.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_host::fs::{self as host, Private};
use microagent_host::lock::{Lock, Sharing};

use crate::error::{IoContext, Result};

/// Held shared by whoever adds content, exclusively by whoever reclaims.
const ACTIVITY: &str = "activity.lock";

/// Makes a directory only its owner can enter, with its parents; one that is there stays as it is.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .private()
        .create(path)
        .context("create the directory", path)
}

/// Makes a rename or an unlink in `directory` last.
pub(crate) fn sync_dir(directory: &Path) -> Result<()> {
    host::sync_dir(directory).context("sync the directory", directory)
}

/// The directory a file is in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes a whole small file: temp, fsync, rename, fsync of the directory.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content)?;
    sync_dir(directory_of(path))
}

/// The same where a crash may take the file: the caller syncs the directory, or can make it again.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let directory = directory_of(path);
    // Created 0600; removed when dropped before the rename. A crash leaves `.tmp…`, which is swept.
    let mut temporary = tempfile::Builder::new()
        .prefix(".tmp")
        .tempfile_in(directory)
        .context("create a file in", directory)?;
    temporary.write_all(content).context("write", path)?;
    temporary.as_file().sync_all().context("sync", path)?;
    temporary
        .persist(path)
        .map_err(|error| error.error)
        .context("replace", path)?;
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// How many bytes this user may still write to the file system of `path`; `None` where it does not say.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    host::free_bytes(path).ok()
}

/// Reads a file of at most `limit` bytes; `None` where there is none.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .context("read", path)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {limit} bytes"),
        ))
        .context("read", path);
    }
    Ok(Some(content))
}

/// Makes a new file only its owner can read.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .private()
        .open(path)
        .context("create", path)
}

/// Opens a file to be locked, creating it.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .private()
        .open(path)
        .context("open the lock", path)
}

/// Removes a file that may be gone already; tells its size if it was there.
pub(crate) fn remove_file(path: &Path) -> Result<Option<u64>> {
    let size = match fs::symlink_metadata(path) {
        Ok(metadata) => {
            // What comes free: disks are sparse.
            host::allocated_bytes(&metadata)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("look at", path),
    };
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(size)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("remove", path),
    }
}

/// The right to add content: a shared lock, while which lives nothing in the store is reclaimed.
#[derive(Debug)]
pub(crate) struct Activity(#[expect(dead_code, reason = "held, not looked at")] Lock);

impl Activity {
    /// Takes it; where nobody else has it, what crashes left is removed first.
    pub(super) fn begin(root: &Path) -> Result<Self> {
        let path = root.join(ACTIVITY);
        let alone = Lock::now(lock_file(&path)?, Sharing::Exclusive).context("lock", &path)?;
        if alone.is_some() {
            // Nobody is at work, so whatever lies there was left by a crash.
            sweep(root)?;
            super::partial::sweep(root, &|age| age > super::partial::KEPT)?;
        }
        drop(alone);
        Lock::wait(lock_file(&path)?, Sharing::Shared, || ())
            .context("lock", &path)
            .map(Self)
    }

    /// Takes the right to reclaim, which nobody shares, within `limit`; `None` if others are at work for
    /// longer.
    pub(super) fn alone(root: &Path, limit: Duration) -> Result<Option<Self>> {
        let path = root.join(ACTIVITY);
        let alone = Lock::within(lock_file(&path)?, Sharing::Exclusive, limit, || ());
        Ok(alone.context("lock", &path)?.map(Self))
    }
}

/// A scratch directory for one operation, in which nothing is visible to others. While it lives nothing
/// in the store is reclaimed; what a crash leaves of it, the next operation removes.
pub(crate) struct Transaction {
    directory: tempfile::TempDir,
    _activity: Activity,
}

impl Transaction {
    pub(super) fn begin(root: &Path) -> Result<Self> {
        let activity = Activity::begin(root)?;
        let temporary = root.join("tmp");
        let mut name = tempfile::Builder::new();
        name.prefix("op-");
        #[cfg(unix)]
        name.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let directory = name
            .tempdir_in(&temporary)
            .context("create a directory in", &temporary)?;
        Ok(Self {
            directory,
            _activity: activity,
        })
    }

    /// A path for a new file of this operation.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Removes what crashes left. The caller holds the exclusive activity lock.
pub(super) fn sweep(root: &Path) -> Result<()> {
    for rest in rests(root)? {
        remove_rest(&rest)?;
    }
    Ok(())
}

/// What crashes left; certain only for who holds the exclusive activity lock.
pub(super) fn rests(root: &Path) -> Result<Vec<PathBuf>> {
    let mut rests = entries(&root.join("tmp"))?;
    for folder in [root.to_path_buf(), root.join("disks")] {
        rests.extend(entries(&folder)?.into_iter().filter(|entry| {
            entry
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp"))
        }));
    }
    Ok(rests)
}

/// Removes a file or directory that a crash left.
pub(super) fn remove_rest(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).context("look at", path)?;
    if metadata.is_dir() {
        fs::remove_dir_all(path).context("remove", path)
    } else {
        remove_file(path).map(drop)
    }
}

/// The paths in a directory; none where it does not exist.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", directory),
    };
    listing
        .map(|entry| Ok(entry.context("list", directory)?.path()))
        .collect()
}
