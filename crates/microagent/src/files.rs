//! Private directories and files that are written whole or not at all.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    path::Path,
};

use microagent_host::{
    fs::{Private, others_may_write, sync_dir},
    process::User,
};
use microagent_image::Digest;
use serde::Serialize;

use crate::error::{Error, IoContext, Result};

/// Makes `path` a directory of this user alone (0700), with its parents; one that is there must
/// be no link and belong to nobody else.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).private().create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(Error::Io {
                doing: "create",
                path: path.to_owned(),
                source,
            });
        }
    }
    let metadata = fs::symlink_metadata(path).context("look at", path)?;
    let untrusted = |reason| Error::Untrusted {
        path: path.to_owned(),
        reason,
    };
    if metadata.is_symlink() {
        // A link that the user made into a directory of their own is as good as the directory.
        let target = fs::metadata(path).context("look at", path)?;
        let own = User::current();
        if !target.is_dir() || User::owner_of(&metadata) != own || User::owner_of(&target) != own {
            return Err(untrusted("it is a link to something of another user"));
        }
        return Ok(());
    }
    if !metadata.is_dir() {
        return Err(untrusted("it is not a directory"));
    }
    if User::owner_of(&metadata) != User::current() {
        return Err(untrusted("it belongs to another user"));
    }
    if others_may_write(&metadata) {
        return Err(untrusted("others may write to it"));
    }
    Ok(())
}

/// Whether a file must survive a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It describes something that lasts.
    Synced,
    /// It goes with what it describes.
    Unsynced,
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

/// Writes `value` as JSON (0600) so that readers see the old file or the new one.
pub(crate) fn write_json(
    path: &Path,
    value: &impl Serialize,
    durability: Durability,
) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .context("describe", path)?;
    bytes.push(b'\n');
    write(path, &bytes, durability)
}

/// Writes a file (0600) so that readers see the old one or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let temporary = path.with_added_extension("new");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .private()
        .open(&temporary)
        .context("create", &temporary)?;
    file.write_all(bytes).context("write", &temporary)?;
    if durability == Durability::Synced {
        file.sync_all().context("sync", &temporary)?;
    }
    fs::rename(&temporary, path).context("rename into place", path)?;
    if durability == Durability::Synced
        && let Some(parent) = path.parent()
    {
        sync_dir(parent).context("sync", parent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn private_directories_are_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        private_dir(&path).unwrap();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            private_dir(&path)
                .unwrap_err()
                .to_string()
                .contains("others may write")
        );

        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(private_dir(&file).is_err());
    }

    #[test]
    fn json_files_are_replaced_whole_and_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x.json");
        for value in [1, 2] {
            write_json(&path, &value, Durability::Synced).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{value}\n"));
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }
}
