//! What the kernel wrote, we read.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, chown, symlink},
    },
    path::Path,
    process::Command,
};

use microagent_ext4::{Error, Usage, Volume};
use rustix::fs::{
    CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, futimens, mknodat, setxattr,
};

use crate::oracle::{
    Mounted, assert_same, directory, e2fsck, mounted_facts, our_facts, scratch, text, tool, volume,
};

/// Fills a mounted file system with everything there is.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("deep/er/still")).unwrap();
    fs::create_dir(at("many")).unwrap();
    for n in 0..5000 {
        fs::write(
            at("many").join(format!("file-with-a-longish-name-{n}")),
            n.to_string(),
        )
        .unwrap();
    }
    for n in (0..5000).step_by(3) {
        fs::remove_file(at("many").join(format!("file-with-a-longish-name-{n}"))).unwrap();
    }
    fs::write(at("big"), vec![7; 5_000_000]).unwrap();
    let holes = File::create(at("holes")).unwrap();
    for n in 0..2000 {
        holes
            .write_all_at(&[(n % 255) as u8 + 1; 100], n * 20_000)
            .unwrap();
    }
    holes.set_len(100 << 20).unwrap();
    let unwritten = File::create(at("unwritten")).unwrap();
    rustix::fs::fallocate(&unwritten, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
    unwritten.write_all_at(b"in the middle", 500_000).unwrap();
    fs::write(at(&"n".repeat(255)), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe\n odd")), "odd").unwrap();
    for length in [1, 59, 60, 61, 255, 4000] {
        symlink("x".repeat(length), at(&format!("link{length}"))).unwrap();
    }
    fs::hard_link(at("big"), at("deep/big-too")).unwrap();
    mknodat(
        CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    mknodat(
        CWD,
        at("large"),
        FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(511, 70_000),
    )
    .unwrap();
    mknodat(
        CWD,
        at("whiteout"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    mknodat(
        CWD,
        at("disk"),
        FileType::BlockDevice,
        Mode::RUSR,
        rustix::fs::makedev(7, 300),
    )
    .unwrap();
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    chown(at("deep"), Some(70_000), Some(4_000_000_000)).unwrap();
    setxattr(
        at("deep"),
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    setxattr(at("deep"), "user.small", b"small", XattrFlags::empty()).unwrap();
    setxattr(at("big"), "user.large", &[9; 3000], XattrFlags::empty()).unwrap();
    setxattr(at("big"), "user.empty", b"", XattrFlags::empty()).unwrap();
    setxattr(
        at("big"),
        "security.capability",
        &[
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        XattrFlags::empty(),
    )
    .unwrap();
    for (name, seconds) in [
        ("deep/er", -5),
        ("deep/er/still", 6_000_000_000),
        ("many", 1),
    ] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        futimens(File::open(at(name)).unwrap(), &times).unwrap();
    }
}

#[test]
fn what_the_kernel_wrote_is_read() {
    let dir = directory();
    let disk = scratch(dir.path(), 256);
    let mounted = Mounted::new(&disk, "rw");
    fill(mounted.path());
    let theirs = mounted_facts(mounted.path());
    drop(mounted);
    assert_same(&our_facts(&volume(&disk)), &theirs);
}

#[test]
fn what_only_the_journal_has_is_read() {
    let dir = directory();
    let disk = scratch(dir.path(), 256);
    // Far from the next checkpoint, so that the journal alone knows.
    let mounted = Mounted::new(&disk, "rw,commit=600");
    fill(mounted.path());
    // Blocks that were directories and are content now: what the journal has of them is dead.
    fs::remove_dir_all(mounted.path().join("many")).unwrap();
    rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
    fs::write(mounted.path().join("after"), vec![0xc0; 3_000_000]).unwrap();
    fs::create_dir(mounted.path().join("many")).unwrap();
    rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
    let theirs = mounted_facts(mounted.path());
    let torn = dir.path().join("torn.ext4");
    fs::copy(&disk, &torn).unwrap();
    drop(mounted);
    let before = fs::read(&torn).unwrap();
    assert!(
        tool("e2fsprogs", "dumpe2fs", &["-h", text(&torn)]).contains("needs_recovery"),
        "there is something to recover"
    );
    assert_same(&our_facts(&volume(&torn)), &theirs);
    assert!(
        fs::read(&torn).unwrap() == before,
        "reading changes nothing"
    );
}

#[test]
fn other_shapes_are_read_or_refused_by_name() {
    for (options, readable) in [
        (&["-b", "1024", "-O", "^metadata_csum"][..], true),
        (&["-b", "2048", "-O", "^64bit,^flex_bg"], true),
        (&["-O", "64bit,metadata_csum_seed", "-I", "512"], true),
        (&["-O", "^has_journal"], true),
        (&["-O", "meta_bg,^resize_inode"], false),
        (&["-O", "inline_data"], false),
        (&["-O", "^extent,^64bit"], false),
    ] {
        let dir = directory();
        let disk = dir.path().join("disk");
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let status = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .args(options)
            .arg(&disk)
            .status()
            .unwrap();
        assert!(status.success(), "{options:?}");
        if !readable {
            let error = Volume::open(File::open(&disk).unwrap()).unwrap_err();
            assert!(
                matches!(error, Error::Unknown { .. }),
                "{options:?}: {error}"
            );
            continue;
        }
        let mounted = Mounted::new(&disk, "rw");
        fs::create_dir_all(mounted.path().join("a/b")).unwrap();
        for n in 0..300 {
            fs::write(mounted.path().join(format!("a/b/{n}")), vec![1; n * 37]).unwrap();
        }
        setxattr(
            mounted.path().join("a/b/7"),
            "user.note",
            b"x",
            XattrFlags::empty(),
        )
        .unwrap();
        let theirs = mounted_facts(mounted.path());
        drop(mounted);
        assert_same(&our_facts(&volume(&disk)), &theirs);
    }
}

#[test]
fn use_is_counted_as_the_kernel_does() {
    let dir = directory();
    let disk = scratch(dir.path(), 64);
    let mounted = Mounted::new(&disk, "rw");
    fs::write(mounted.path().join("f"), vec![1; 10 << 20]).unwrap();
    drop(mounted);
    e2fsck(&disk);
    let mut superblock = [0; 1024];
    File::open(&disk)
        .unwrap()
        .read_exact_at(&mut superblock, 1024)
        .unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).unwrap());
    let usage = Usage::new(&superblock, blocks).unwrap();
    let mounted = Mounted::new(&disk, "ro");
    let theirs = rustix::fs::statvfs(mounted.path()).unwrap();
    assert_eq!(
        (usage.size, usage.free),
        (64 << 20, theirs.f_bfree * theirs.f_frsize)
    );
    assert_eq!(usage.used + usage.free, usage.size);
    assert!(
        usage.allocated > 10 << 20 && usage.percent() > 10.0,
        "{usage:?}"
    );
    assert!(Usage::new(&[0; 1024], 0).is_err());
}
