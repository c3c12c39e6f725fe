//! What other programs say of the same file system.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use microagent_ext4::{FileKind, Inode, ROOT, Volume};
pub(crate) use testkit::tool;

pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty scratch disk, as workspaces have it.
pub(crate) fn scratch(folder: &Path, mib: u64) -> PathBuf {
    let path = folder.join("scratch.ext4");
    microagent_image::disk::create_scratch(&path, mib).unwrap();
    path
}

pub(crate) fn e2fsck(disk: &Path) {
    tool("e2fsprogs", "e2fsck", &["-fn", text(disk)]);
}

pub(crate) fn volume(disk: &Path) -> Volume {
    Volume::open(File::open(disk).unwrap()).unwrap()
}

/// A disk that is mounted for as long as the value lives.
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    pub(crate) fn new(disk: &Path, options: &str) -> Self {
        let at = directory();
        let options = format!("loop,{options}");
        tool(
            "mount",
            "mount",
            &["-o", &options, text(disk), text(at.path())],
        );
        Self(at)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        testkit::unmount(self.0.path());
    }
}

/// Everything in a tree, by path.
pub(crate) type Facts = BTreeMap<PathBuf, String>;

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    })
}

/// What the kernel sees below `root`.
pub(crate) fn mounted_facts(root: &Path) -> Facts {
    let mut facts = Facts::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let device = (rustix_major(meta.rdev()), rustix_minor(meta.rdev()));
        let content = if meta.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!("file {} {}", bytes.len(), sum(&bytes))
        } else if kind.is_char_device() {
            format!("{:?}", FileKind::Character(device.0, device.1))
        } else if kind.is_block_device() {
            format!("{:?}", FileKind::Block(device.0, device.1))
        } else if kind.is_fifo() {
            format!("{:?}", FileKind::Fifo)
        } else {
            format!("{:?}", FileKind::Socket)
        };
        facts.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            format!(
                "{content} {:o} {}:{} {}.{} x{} {:?}",
                meta.mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.nlink(),
                host_attributes(&path),
            ),
        );
    }
    facts
}

/// By a tool, as root: with the names that only root sees.
fn host_attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let length = rustix::fs::llistxattr(&c_path, &mut names[..]).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length =
                rustix::fs::lgetxattr(&c_path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(length);
            (String::from_utf8(name.to_vec()).unwrap(), value)
        })
        .collect()
}

fn rustix_major(device: u64) -> u32 {
    rustix::fs::major(device)
}

fn rustix_minor(device: u64) -> u32 {
    rustix::fs::minor(device)
}

/// What we see in the same tree.
pub(crate) fn our_facts(volume: &Volume) -> Facts {
    let mut facts = Facts::new();
    let mut left = vec![(PathBuf::new(), volume.inode(ROOT).unwrap())];
    while let Some((path, inode)) = left.pop() {
        let content = match inode.kind() {
            FileKind::Directory => {
                for entry in volume.entries(&inode).unwrap() {
                    let inner = path.join(OsStr::from_bytes(&entry.name));
                    left.push((inner, volume.inode(entry.inode).unwrap()));
                }
                "directory".to_owned()
            }
            FileKind::Symlink => {
                let target = volume.target(&inode).unwrap();
                format!("link {:?}", OsStr::from_bytes(&target))
            }
            FileKind::File => {
                let bytes = read(volume, &inode);
                format!("file {} {}", bytes.len(), sum(&bytes))
            }
            other => format!("{other:?}"),
        };
        let (seconds, nanos) = inode.mtime();
        let attributes: BTreeMap<_, _> = volume
            .attributes(&inode)
            .unwrap()
            .into_iter()
            .map(|(name, value)| (String::from_utf8(name).unwrap(), value))
            .collect();
        facts.insert(
            path,
            format!(
                "{content} {:o} {}:{} {seconds}.{nanos} x{} {attributes:?}",
                inode.mode(),
                inode.uid(),
                inode.gid(),
                inode.links(),
            ),
        );
    }
    facts
}

fn read(volume: &Volume, inode: &Inode) -> Vec<u8> {
    let content = volume.content(inode).unwrap();
    let mut bytes = vec![0xff; inode.size() as usize];
    // In odd pieces.
    let mut at = 0;
    for piece in bytes.chunks_mut(70_001) {
        content.read_at(at, piece).unwrap();
        at += piece.len() as u64;
    }
    // Outside the segments there is nothing.
    let mut end = 0;
    for (start, length) in content.segments() {
        assert!(bytes[end..start as usize].iter().all(|byte| *byte == 0));
        end = (start + length) as usize;
    }
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
    bytes
}

pub(crate) fn assert_same(ours: &Facts, theirs: &Facts) {
    for (path, fact) in theirs {
        assert_eq!(ours.get(path), Some(fact), "{}", path.display());
    }
    assert_eq!(ours.len(), theirs.len());
}
