//! Trees on real file systems: what is packed lands as it was, and hostile streams land nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod hostile;

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use microagent_files::{CopyError, Policy, land, pack};
use microagent_protocol::{CopyReport, CopyWhat, Landing, Shipment, supervisor::ErrorKind};
use rustix::{
    fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, futimens, mknodat, setxattr},
    process::geteuid,
};

fn packed(path: &Path, what: CopyWhat) -> (Vec<u8>, CopyReport) {
    pack(path, what, Vec::new()).unwrap()
}

const PLAIN: CopyWhat = CopyWhat {
    contents: false,
    follow: false,
};
const CONTENTS: CopyWhat = CopyWhat {
    contents: true,
    follow: false,
};
const FOLLOW: CopyWhat = CopyWhat {
    contents: false,
    follow: true,
};

/// Everything below a directory, by path: kind, mode, owner, time, content, link number.
fn facts(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut facts = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let content = if meta.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "dir".to_owned()
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!(
                "file {} {:x}",
                bytes.len(),
                bytes.iter().fold(7_u64, |sum, byte| sum
                    .wrapping_mul(31)
                    .wrapping_add(u64::from(*byte)))
            )
        } else {
            format!("special {:?} {}", meta.file_type().is_fifo(), meta.rdev())
        };
        let same = if meta.nlink() > 1 && !meta.is_dir() {
            inodes
                .entry(meta.ino())
                .or_insert_with(|| name.clone())
                .clone()
        } else {
            PathBuf::new()
        };
        let mut note = [0; 64];
        let note = match rustix::fs::lgetxattr(&path, "user.note", &mut note[..]) {
            Ok(length) => note[..length].to_vec(),
            Err(_) => Vec::new(),
        };
        facts.insert(
            name,
            format!(
                "{content} {:o} {}:{} {}.{} {same:?} {note:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
            ),
        );
    }
    facts
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A tree with everything in it that a copy keeps.
fn rich(root: &Path) -> PathBuf {
    let src = root.join("src");
    fs::create_dir_all(src.join("deep/er/still")).unwrap();
    fs::write(src.join("hello"), "hello").unwrap();
    fs::write(src.join("deep/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(src.join("deep/script"), Permissions::from_mode(0o750)).unwrap();
    fs::write(src.join("empty"), "").unwrap();
    fs::write(src.join("n".repeat(255)), "long").unwrap();
    fs::write(
        src.join(std::ffi::OsStr::from_bytes(b"\xff\n\t\"odd")),
        "odd",
    )
    .unwrap();
    fs::write(src.join("big"), vec![7; 300_000]).unwrap();
    let sparse = File::create(src.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 32 << 20).unwrap();
    fs::hard_link(src.join("hello"), src.join("deep/hello-too")).unwrap();
    symlink("hello", src.join("link")).unwrap();
    symlink("/etc/passwd", src.join("deep/outward")).unwrap();
    symlink("nowhere", src.join("dangling")).unwrap();
    setxattr(src.join("hello"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    setxattr(src.join("deep"), "user.note", b"dir", XattrFlags::empty()).unwrap();
    if geteuid().is_root() {
        chown(src.join("deep/er"), Some(1234), Some(99_999_999)).unwrap();
        chown(src.join("hello"), Some(1234), Some(5)).unwrap();
    }
    fs::set_permissions(src.join("deep/er/still"), Permissions::from_mode(0o500)).unwrap();
    let old = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 123_456_789,
    };
    for path in ["hello", "deep/er", "deep"] {
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        futimens(File::open(src.join(path)).unwrap(), &times).unwrap();
    }
    src
}

#[test]
fn a_tree_arrives_as_it_was() {
    let dir = directory();
    let src = rich(dir.path());
    let (bytes, report) = packed(&src, PLAIN);
    assert!(bytes.len() < 1 << 20, "holes are not sent: {}", bytes.len());
    assert_eq!((report.directories, report.skipped), (4, 0));
    let named = Landing::new(Shipment::Named);
    for (destination, lands) in [("new", "new"), ("there", "there/src")] {
        fs::create_dir_all(dir.path().join("there")).unwrap();
        let landed = land(
            &bytes[..],
            &dir.path().join(destination),
            &named,
            &Policy::wary(),
        )
        .unwrap();
        assert_eq!(facts(&src), facts(&dir.path().join(lands)));
        assert_eq!(
            (landed.files, landed.directories, landed.bytes),
            (report.files, report.directories, report.bytes)
        );
    }
    // Over itself, and the contents alone.
    land(
        &bytes[..],
        &dir.path().join("there"),
        &named,
        &Policy::wary(),
    )
    .unwrap();
    assert_eq!(facts(&src), facts(&dir.path().join("there/src")));
    let (bytes, _) = packed(&src, CONTENTS);
    land(
        &bytes[..],
        &dir.path().join("inner"),
        &Landing::new(Shipment::Contents),
        &Policy::wary(),
    )
    .unwrap();
    assert_eq!(facts(&src), facts(&dir.path().join("inner")));
    let sparse = fs::metadata(dir.path().join("inner/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes arrive as holes");
}

#[test]
fn one_file_goes_where_cp_would_put_it() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), "new").unwrap();
    symlink("a", at("link")).unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("old"), "old").unwrap();
    symlink("old", at("to-old")).unwrap();
    symlink("d", at("to-d")).unwrap();
    let (bytes, _) = packed(&at("a"), PLAIN);
    let named = Landing::new(Shipment::Named);
    let wary = Policy::wary();
    for (destination, landed) in [
        ("b", "b"),
        ("d", "d/a"),
        ("to-old", "old"),
        ("to-d", "d/a"),
        ("d/b", "d/b"),
    ] {
        land(&bytes[..], &at(destination), &named, &wary).unwrap();
        assert_eq!(fs::read(at(landed)).unwrap(), b"new", "{destination}");
        fs::write(at(landed), "other").unwrap();
    }
    assert!(
        at("to-old").is_symlink(),
        "what a link leads to is replaced"
    );
    // A link itself, or what it leads to.
    let (bytes, _) = packed(&at("link"), PLAIN);
    land(&bytes[..], &at("copied"), &named, &wary).unwrap();
    assert_eq!(fs::read_link(at("copied")).unwrap(), Path::new("a"));
    let (bytes, _) = packed(&at("link"), FOLLOW);
    land(&bytes[..], &at("followed"), &named, &wary).unwrap();
    assert_eq!(fs::read_to_string(at("followed")).unwrap(), "new");

    let into = Landing {
        into_directory: true,
        ..named.clone()
    };
    let missing = land(&bytes[..], &at("none/x"), &named, &wary).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    let missing = land(&bytes[..], &at("none"), &into, &wary).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    let file = land(&bytes[..], &at("old"), &into, &wary).unwrap_err();
    assert_eq!(file.kind(), ErrorKind::Conflict, "{file}");
    let parents = Landing {
        parents: true,
        ..named.clone()
    };
    land(&bytes[..], &at("x/y/z"), &parents, &wary).unwrap();
    assert!(at("x/y/z").is_file());
    let (tree, _) = packed(&at("d"), PLAIN);
    let file = land(&tree[..], &at("old"), &named, &wary).unwrap_err();
    assert_eq!(file.kind(), ErrorKind::Conflict, "{file}");
    fs::create_dir_all(at("e/a/full")).unwrap();
    let (bytes, _) = packed(&at("a"), PLAIN);
    let over = land(&bytes[..], &at("e"), &named, &wary).unwrap_err();
    assert_eq!(over.kind(), ErrorKind::Conflict, "{over}");
    assert!(matches!(
        pack(&at("none"), PLAIN, Vec::new()),
        Err(CopyError::Missing { .. })
    ));
    assert!(pack(&at("a"), CONTENTS, Vec::new()).is_err());
    assert_eq!(
        fs::read_dir(at("e")).unwrap().count(),
        1,
        "nothing half done stays"
    );
}

#[test]
fn owners_and_modes_can_be_set() {
    let dir = directory();
    let src = dir.path().join("src");
    fs::create_dir_all(&src).unwrap();
    fs::write(src.join("su"), "x").unwrap();
    fs::set_permissions(src.join("su"), Permissions::from_mode(0o6755)).unwrap();
    let (bytes, _) = packed(&src, PLAIN);
    let mut landing = Landing::new(Shipment::Named);
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    land(
        &bytes[..],
        &dir.path().join("plain"),
        &landing,
        &Policy::wary(),
    )
    .unwrap();
    assert_eq!(mode("plain/su"), 0o755, "nobody's programs get rights here");
    land(
        &bytes[..],
        &dir.path().join("full"),
        &landing,
        &Policy::trusting(),
    )
    .unwrap();
    assert_eq!(mode("full/su"), 0o6755);
    landing.mode = Some("640".parse().unwrap());
    landing.owner = Some("12:34".parse().unwrap());
    land(
        &bytes[..],
        &dir.path().join("set"),
        &landing,
        &Policy::wary(),
    )
    .unwrap();
    assert_eq!((mode("set/su"), mode("set")), (0o640, 0o750));
    if geteuid().is_root() {
        let meta = fs::metadata(dir.path().join("set/su")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34));
    }
}

#[test]
fn what_cannot_travel_is_told() {
    let dir = directory();
    let src = dir.path().join("src");
    fs::create_dir(&src).unwrap();
    let _socket = UnixListener::bind(src.join("sock")).unwrap();
    mknodat(CWD, src.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let (bytes, report) = packed(&src, PLAIN);
    assert_eq!((report.skipped, report.files), (1, 1), "{report:?}");
    assert!(report.notices[0].contains("sock"), "{report:?}");
    let named = Landing::new(Shipment::Named);
    let landed = land(
        &bytes[..],
        &dir.path().join("wary"),
        &named,
        &Policy::wary(),
    )
    .unwrap();
    assert_eq!((landed.skipped, landed.files), (1, 0), "{landed:?}");
    land(
        &bytes[..],
        &dir.path().join("full"),
        &named,
        &Policy::trusting(),
    )
    .unwrap();
    assert!(
        fs::metadata(dir.path().join("full/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn other_file_systems_are_named_and_left() {
    let dir = directory();
    let inner = dir.path().join("t/mnt");
    fs::create_dir_all(&inner).unwrap();
    let mounted = Mounted::tmpfs(&inner, "size=1m");
    fs::write(inner.join("f"), "x").unwrap();
    let (bytes, report) = packed(&dir.path().join("t"), PLAIN);
    assert_eq!(
        (report.directories, report.files, report.skipped),
        (2, 0, 1),
        "{report:?}"
    );
    let (_, inside) = packed(&inner, PLAIN);
    assert_eq!((inside.files, inside.skipped), (1, 0));
    drop(mounted);
    assert!(!bytes.is_empty());
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        testkit::unmount(&self.0);
    }
}

#[test]
fn what_other_programs_write_lands_too() {
    let dir = directory();
    let src = rich(dir.path());
    let tar = |format: &str, sparse: &[&str]| {
        let made = std::process::Command::new("tar")
            .arg("--xattrs")
            .args(["--format", format])
            .args(sparse)
            .args(["-cf", "-", "-C"])
            .arg(&src)
            .arg(".")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        made.stdout
    };
    for (format, sparse) in [
        ("pax", &["--sparse"][..]),
        ("pax", &[]),
        ("pax", &["--sparse", "--sparse-version=0.1"]),
    ] {
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        land(
            &tar(format, sparse)[..],
            &to,
            &Landing::new(Shipment::Archive),
            &Policy::wary(),
        )
        .unwrap();
        let (mut expected, mut found) = (facts(&src), facts(&to));
        // Its own entry does not change a directory that was there.
        expected.remove(Path::new(""));
        found.remove(Path::new(""));
        assert_eq!(expected, found, "{format} {sparse:?}");
        fs::remove_dir_all(&to).unwrap();
    }
}
