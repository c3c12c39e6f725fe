//! The kernel's file systems, as programs expect to find them.

use std::{
    ffi::CStr,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use rustix::mount::{MountFlags, mount};

use crate::error::{Context, Error};

struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
    /// Whether a machine without it is no machine.
    needed: bool,
}

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In mounting order.
const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        kind: "proc",
        target: "/proc",
        flags: PLAIN,
        options: c"",
        needed: true,
    },
    FileSystem {
        kind: "sysfs",
        target: "/sys",
        flags: PLAIN,
        options: c"",
        needed: true,
    },
    FileSystem {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        options: c"mode=0755",
        needed: true,
    },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"newinstance,ptmxmode=0666,mode=0620,gid=5",
        needed: true,
    },
    FileSystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
        needed: true,
    },
    // Kernels may lack these.
    FileSystem {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: PLAIN,
        options: c"",
        needed: false,
    },
    FileSystem {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: PLAIN,
        options: c"nsdelegate",
        needed: false,
    },
];

/// What finding the disks and configuring the network takes.
pub(crate) fn mount_early() -> Result<(), Error> {
    for system in FILE_SYSTEMS
        .iter()
        .filter(|system| matches!(system.kind, "proc" | "sysfs" | "devtmpfs"))
    {
        system.mount()?;
    }
    Ok(())
}

/// Everything, in the root of the image.
pub(crate) fn mount_all() -> Result<(), Error> {
    for system in FILE_SYSTEMS {
        match system.mount() {
            Err(error) if system.needed => return Err(error),
            // A kernel without the file system; who needs it will say so.
            _ => {}
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).context(format_args!("make the link {link}"));
            }
            _ => {}
        }
    }
    mount_run()?;
    mount_tmp()
}

impl FileSystem {
    fn mount(&self) -> Result<(), Error> {
        make_directory(self.target, 0o755)?;
        mount(self.kind, self.target, self.kind, self.flags, self.options)
            .context(format_args!("mount {} ({})", self.target, self.kind))
    }
}

fn make_directory(path: &str, mode: u32) -> Result<(), Error> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .context(format_args!("make the directory {path}"))
}

/// `/run` starts empty at each boot, but for what the image prepared there:
/// directories with their owners that its services count on.
fn mount_run() -> Result<(), Error> {
    let prepared = Prepared::read(Path::new("/run"));
    let Some(prepared) = prepared else {
        // Too much to copy: then the image's own directory serves.
        return Ok(());
    };
    make_directory("/run", 0o755)?;
    mount(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )
    .context("mount /run (tmpfs)")?;
    prepared.restore();
    Ok(())
}

/// The image's `/tmp` stays if there is one.
fn mount_tmp() -> Result<(), Error> {
    let path = Path::new("/tmp");
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            if metadata.mode() & 0o7777 == 0o1777 {
                return Ok(());
            }
            fs::set_permissions(path, Permissions::from_mode(0o1777))
                .context("open /tmp to everybody")
        }
        Ok(_) => Ok(()),
        Err(_) => {
            make_directory("/tmp", 0o1777)?;
            mount(
                "tmpfs",
                "/tmp",
                "tmpfs",
                MountFlags::NOSUID | MountFlags::NODEV,
                c"mode=1777",
            )
            .context("mount /tmp (tmpfs)")
        }
    }
}

/// A small tree of directories, links and files, held in memory.
#[derive(Debug, Default)]
struct Prepared {
    entries: Vec<(std::path::PathBuf, Entry)>,
    bytes: u64,
}

#[derive(Debug)]
enum Entry {
    Directory {
        mode: u32,
        owner: (u32, u32),
    },
    File {
        mode: u32,
        owner: (u32, u32),
        content: Vec<u8>,
    },
    Link {
        target: std::path::PathBuf,
    },
}

impl Prepared {
    const MOST_ENTRIES: usize = 1024;
    const MOST_BYTES: u64 = 1024 * 1024;

    /// The tree below `root`, or `None` if it is not a small one.
    fn read(root: &Path) -> Option<Self> {
        let mut tree = Self::default();
        if root.is_dir() {
            tree.add(root)?;
        }
        Some(tree)
    }

    fn add(&mut self, folder: &Path) -> Option<()> {
        for entry in fs::read_dir(folder).ok()? {
            let path = entry.ok()?.path();
            let metadata = fs::symlink_metadata(&path).ok()?;
            let mode = metadata.mode() & 0o7777;
            let owner = (metadata.uid(), metadata.gid());
            if self.entries.len() >= Self::MOST_ENTRIES {
                return None;
            }
            if metadata.is_dir() {
                self.entries
                    .push((path.clone(), Entry::Directory { mode, owner }));
                self.add(&path)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).ok()?;
                self.entries.push((path, Entry::Link { target }));
            } else if metadata.is_file() {
                self.bytes = self.bytes.saturating_add(metadata.len());
                if self.bytes > Self::MOST_BYTES {
                    return None;
                }
                let content = fs::read(&path).ok()?;
                self.entries.push((
                    path,
                    Entry::File {
                        mode,
                        owner,
                        content,
                    },
                ));
            }
            // Sockets and pipes belong to processes that are not there.
        }
        Some(())
    }

    fn restore(&self) {
        for (path, entry) in &self.entries {
            // What does not fit in memory is left out, as if nobody had prepared it.
            let _ = entry.restore(path);
        }
    }
}

impl Entry {
    fn restore(&self, path: &Path) -> io::Result<()> {
        let (mode, owner) = match self {
            Self::Link { target } => return symlink(target, path),
            Self::Directory { mode, owner } => {
                fs::create_dir(path)?;
                (mode, owner)
            }
            Self::File {
                mode,
                owner,
                content,
            } => {
                fs::write(path, content)?;
                (mode, owner)
            }
        };
        chown(path, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(path, Permissions::from_mode(*mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_prepared_survives_and_what_is_too_much_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("mysqld");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o2775)).unwrap();
        fs::write(inner.join("note"), "x").unwrap();
        symlink("mysqld", folder.path().join("link")).unwrap();
        let prepared = Prepared::read(folder.path()).unwrap();
        assert_eq!(prepared.entries.len(), 3);
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        prepared.restore();
        assert_eq!(fs::metadata(&inner).unwrap().mode() & 0o7777, 0o2775);
        assert_eq!(
            fs::read_to_string(folder.path().join("link/note")).unwrap(),
            "x"
        );

        fs::write(folder.path().join("big"), vec![0; 1024 * 1024]).unwrap();
        assert!(Prepared::read(folder.path()).is_none());
    }
}
