//! A real Debian 12 root file system, made by the distribution's own bootstrap tool.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::process;

/// The root file system as a tar archive; made once and kept.
pub(crate) fn rootfs_tar() -> anyhow::Result<PathBuf> {
    let dir = process::target_dir().join("test-cache");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let tar = dir.join("debian-12-minbase.tar.gz");
    if tar.exists() {
        return Ok(tar);
    }
    let part = dir.join("debian-12-minbase.part.tar.gz");
    process::run(
        Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "bookworm"])
            .arg(&part),
    )
    .context(
        "the Debian image could not be made; it needs a Debian mirror in /etc/apt and its keyring",
    )?;
    fs::rename(&part, &tar)?;
    Ok(tar)
}
