//! A file system whose files can share blocks, which most hosts' temporary directories are not on.

use std::{fs::File, path::PathBuf, process::Command};

use crate::{require, skip_test, unmount};

/// An XFS in a sparse file, mounted until it is dropped.
#[derive(Debug)]
pub struct Xfs {
    directory: tempfile::TempDir,
}

impl Xfs {
    /// Makes one and mounts it; nothing, and the test counts as skipped, where this host does not mount it.
    ///
    /// # Panics
    /// If `mkfs.xfs` is missing or fails.
    #[must_use]
    pub fn mount() -> Option<Self> {
        require("mkfs.xfs", "xfsprogs");
        let directory = tempfile::tempdir().expect("a directory for the file system");
        let image = directory.path().join("image");
        // The least that mkfs.xfs makes is 300 MiB.
        File::create(&image)
            .and_then(|file| file.set_len(512 << 20))
            .expect("a sparse file");
        let made = Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&image)
            .output()
            .expect("mkfs.xfs starts");
        assert!(made.status.success(), "mkfs.xfs: {made:?}");
        let xfs = Self { directory };
        std::fs::create_dir(xfs.path()).expect("a place to mount it");
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &xfs.path()])
            .output()
            .expect("mount starts");
        if mounted.status.success() {
            return Some(xfs);
        }
        skip_test(format_args!(
            "this host mounts no XFS: {}",
            String::from_utf8_lossy(&mounted.stderr).trim()
        ));
        None
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// How many bytes of it are in use, with everything written.
    ///
    /// # Panics
    /// If the system does not tell.
    #[must_use]
    pub fn used(&self) -> u64 {
        let root = File::open(self.path()).expect("the root of the file system");
        rustix::fs::syncfs(&root).expect("everything is written");
        let told = rustix::fs::fstatvfs(&root).expect("how full it is");
        (told.f_blocks - told.f_bfree) * told.f_frsize
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}
