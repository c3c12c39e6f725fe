//! Base disks against the truth: umoci, e2fsck, the kernel, a naive model, and hostile archives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests"
)]

mod archive;
mod corpus;
mod hostile;
mod model;
mod nasty;
mod oracle;
mod random;
mod stack;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use archive::{DIR, FILE, Meta, Tar, header};
use microagent_image::disk::{
    BuildOptions, BuildProgress, Compression, DiskError, Headroom, build, build_writable,
    create_scratch,
};
use nasty::nasty;
use oracle::{
    Mounted, assert_same, build_joined, build_plain, directory, e2fsck, facts, gzip, source, tool,
    umoci,
};
use sha2::{Digest, Sha256};

/// What `docs/concepts.md` says how to make by hand.
fn sums_by_hand(disk: &Path) -> String {
    let by_hand = r#"echo "microagent-disk-sums 2 4194304 $(stat -c %s "$0")"
        split -b 4M --filter='b3sum --no-names' "$0""#;
    let output = Command::new("sh").args(["-ec", by_hand]).arg(disk).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// Content that a later layer hides is taken from the disk after it was hashed.
#[test]
fn the_sums_are_those_of_the_finished_disk() {
    let work = directory();
    let large: Vec<u8> = (0..(14 << 20)).map(|at| (at / 3 % 251) as u8).collect();
    let first = Tar::default()
        .file("kept", &large[..6 << 20], FILE)
        .file("hidden", &large, FILE)
        .end();
    let second = Tar::default().whiteout(".wh.hidden").end();
    let disk = work.path().join("disk.ext4");
    let built = build_plain(&[first, second], &disk).unwrap();
    assert_eq!(built.sums.text(), sums_by_hand(&disk));
    assert!(built.allocated_bytes < 8 << 20, "{built:?}");
}

#[test]
fn nasty_image_is_what_umoci_unpacks() {
    let work = directory();
    let layers = nasty(20_000);
    let disk = work.path().join("disk.ext4");
    let built = build_plain(&layers, &disk).unwrap();
    e2fsck(&disk);
    assert!(
        built.allocated_bytes < 300 << 20,
        "the sparse file is sparse: {built:?}"
    );
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(built.size_bytes, fs::metadata(&disk).unwrap().len());
    assert_eq!(built.sums.text(), sums_by_hand(&disk));
    let theirs = umoci(&layers, work.path());
    let mounted = Mounted::new(&disk);
    let compared = assert_same(mounted.path(), &theirs);
    assert_eq!(
        compared as u64,
        built.entries + hard_link_names(mounted.path())
    );
    assert_eq!(
        fs::metadata(mounted.path().join("sparse"))
            .unwrap()
            .blocks(),
        20,
        "three blocks of data and two of zeros too few for a hole"
    );
    assert_eq!(
        fs::read(mounted.path().join("usr/bin/through-link")).unwrap(),
        b"lands in usr/bin"
    );
    // In pieces it is the same tree.
    drop(mounted);
    fs::remove_file(&disk).unwrap();
    build_joined(&layers, &disk).unwrap();
    e2fsck(&disk);
    let mounted = Mounted::new(&disk);
    assert_eq!(assert_same(mounted.path(), &theirs), compared);
    println!("\ncorpus: the nasty fixture: {compared} names the same, in one file and in pieces");
}

fn hard_link_names(root: &Path) -> u64 {
    facts(root)
        .iter()
        .filter(|(path, facts)| facts.same_as != **path)
        .count() as u64
}

#[test]
fn equal_layers_give_equal_disks_however_they_are_compressed() {
    let work = directory();
    let layers = nasty(20_000);
    let members: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| [gzip(&layer[..700]), gzip(&layer[700..])].concat())
        .collect();
    let frames: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| {
            let frame = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
            // A skippable frame in front, then two frames.
            [
                vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9],
                frame(&layer[..5000]),
                frame(&layer[5000..]),
            ]
            .concat()
        })
        .collect();
    let one = build_plain(&layers, &work.path().join("one")).unwrap();
    for other in [&members, &frames] {
        let path = work.path().join("two");
        let two = build_plain(other, &path).unwrap();
        assert_eq!(
            (&one.sums, one.size_bytes, one.uuid),
            (&two.sums, two.size_bytes, two.uuid)
        );
        assert_eq!(
            fs::read(work.path().join("one")).unwrap(),
            fs::read(&path).unwrap()
        );
    }
    assert_eq!(one.diff_ids[0][..], Sha256::digest(&layers[0])[..]);
    let changed = build_plain(&layers[..2], &work.path().join("three")).unwrap();
    assert_ne!(one.uuid, changed.uuid);
}

/// `umoci insert` leaves out the last file's padding and the end marker. A digest says that this is all.
#[test]
fn a_layer_without_its_last_padding_is_taken_if_its_digest_is_known() {
    let work = directory();
    let whole = Tar::default().file("a", &[7; 700], FILE).end();
    let layer = whole[..512 + 700].to_vec();
    let known = Some(Sha256::digest(&layer).into());
    let build = |diff_id| {
        let layer = source("short", layer.clone(), Compression::None, diff_id);
        let disk = work.path().join("disk");
        build(vec![layer], &disk, &BuildOptions::default(), &mut |_| {})
    };
    assert_eq!(build(known).unwrap().entries, 2);
    let error = build(None).unwrap_err().to_string();
    assert!(error.contains("no end-of-archive marker"), "{error}");
}

#[test]
fn diff_ids_are_held() {
    let work = directory();
    let layer = Tar::default().file("a", b"content", FILE).end();
    let right: [u8; 32] = Sha256::digest(&layer).into();
    let disk = work.path().join("disk");
    let mut events = Vec::new();
    build(
        vec![source(
            "right",
            gzip(&layer),
            Compression::Gzip,
            Some(right),
        )],
        &disk,
        &BuildOptions::default(),
        &mut |progress| events.push(format!("{progress:?}")),
    )
    .unwrap();
    assert!(
        events[0].contains("right") && events.last().unwrap().contains("Finishing"),
        "{events:?}"
    );
    let before = fs::read(&disk).unwrap();
    let error = build(
        vec![source(
            "sha256:wrong",
            layer.clone(),
            Compression::None,
            Some([7; 32]),
        )],
        &disk,
        &BuildOptions::default(),
        &mut |progress| assert!(!matches!(progress, BuildProgress::Finishing)),
    )
    .unwrap_err();
    assert!(
        matches!(&error, DiskError::DiffId { layer, .. } if layer == "sha256:wrong"),
        "{error}"
    );
    assert_eq!(fs::read(&disk).unwrap(), before, "the old disk stays");
    assert_eq!(
        fs::read_dir(work.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );
}

#[test]
fn an_image_without_layers_is_an_empty_disk() {
    let work = directory();
    let disk = work.path().join("disk");
    let built = build_plain(&[], &disk).unwrap();
    assert_eq!(built.entries, 1);
    e2fsck(&disk);
    assert_eq!(fs::read_dir(Mounted::new(&disk).path()).unwrap().count(), 0);
}

#[test]
fn what_tar_can_say_in_many_ways() {
    let work = directory();
    let mut old = header(b'S', b"old-gnu", b"", 1024, FILE, (0, 0));
    old[257..265].copy_from_slice(b"ustar  \0");
    old[345..512].fill(0);
    for (index, (offset, length)) in [(4096u64, 512u64), (65_536, 512)].into_iter().enumerate() {
        archive::octal(&mut old[386 + index * 24..398 + index * 24], offset);
        archive::octal(&mut old[398 + index * 24..410 + index * 24], length);
    }
    archive::octal(&mut old[483..495], 100_000);
    archive::checksum(&mut old);
    let mut prefixed = header(b'0', b"name", b"", 0, FILE, (0, 0));
    prefixed[345..355].copy_from_slice(b"prefix/dir");
    archive::checksum(&mut prefixed);
    let mut v7 = header(0, b"v7dir/", b"", 0, DIR, (0, 0));
    v7[257..345].fill(0);
    archive::checksum(&mut v7);
    let mut binary = [0u8; 512];
    binary.copy_from_slice(&header(b'0', b"before-1970", b"", 0, FILE, (0, 0)));
    binary[136..148].fill(0xff);
    archive::checksum(&mut binary);
    let long = "d/".repeat(100) + "file";
    let layer = Tar::default()
        .raw(&old)
        .raw(&[[5u8; 512], [6; 512]].concat())
        .raw(&prefixed)
        .raw(&v7)
        .raw(&binary)
        .gnu_long(b'L', long.as_bytes())
        .raw(&header(b'0', b"cut", b"", 0, FILE, (0, 0)))
        .pax(&[
            ("GNU.sparse.map", b"0,3,8192,2"),
            ("GNU.sparse.size", b"9000"),
            ("GNU.sparse.name", b"sparse-0.1"),
        ])
        .file("x", b"abcde", FILE)
        .pax(&[
            ("GNU.sparse.size", b"9000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"8192"),
            ("GNU.sparse.numbytes", b"2"),
        ])
        .file("sparse-0.0", b"abcde", FILE)
        .extension(
            b'g',
            &[("uid", b"77"), ("SCHILY.xattr.user.all", b"global")],
        )
        .file("global", b"", FILE)
        .pax(&[("uid", b"78"), ("LIBARCHIVE.xattr.user.more", b"bW9yZQ")])
        .file("local", b"", FILE)
        .extension(b'g', &[("uid", b"")])
        .file("global-over", b"", FILE)
        .raw(&header(b'0', b"raw-\xff-name", b"", 0, FILE, (0, 0)))
        .end();
    let disk = work.path().join("disk");
    build_plain(&[layer], &disk).unwrap();
    e2fsck(&disk);
    let mounted = Mounted::new(&disk);
    let all = facts(mounted.path());
    let get = |name: &str| &all[Path::new(name)];
    let read = |name: &str| fs::read(mounted.path().join(name)).unwrap();
    assert_eq!(read("old-gnu").len(), 100_000);
    assert_eq!(&read("old-gnu")[4096..4608], &[5; 512]);
    assert_eq!(&read("old-gnu")[65_536..66_048], &[6; 512]);
    for name in ["sparse-0.0", "sparse-0.1"] {
        assert_eq!(
            (read(name).len(), &read(name)[..4], &read(name)[8192..8195]),
            (9000, &b"abc\0"[..], &b"de\0"[..])
        );
    }
    assert_eq!(get("prefix/dir/name").kind, "file");
    assert_eq!(get("v7dir").kind, "directory");
    assert_eq!(get("before-1970").mtime, (-1, 0));
    assert_eq!(get(&long).kind, "file");
    assert_eq!(
        (
            get("global").owner.0,
            get("local").owner.0,
            get("global-over").owner.0
        ),
        (77, 78, 0)
    );
    assert_eq!(get("global").xattrs[&b"user.all".to_vec()], b"global");
    assert_eq!(get("local").xattrs[&b"user.more".to_vec()], b"more");
    assert!(
        all.keys()
            .any(|path| path.as_os_str().as_encoded_bytes() == b"raw-\xff-name"),
        "byte names are kept"
    );
}

#[test]
fn posix_acls_survive() {
    let work = directory();
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let layer = Tar::default()
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)])
        .file("guarded", b"", FILE.mode(0o640))
        .end();
    let disk = work.path().join("disk");
    build_plain(&[layer], &disk).unwrap();
    e2fsck(&disk);
    let mounted = Mounted::new(&disk);
    assert_eq!(
        facts(mounted.path())[Path::new("guarded")].xattrs[&b"system.posix_acl_access".to_vec()],
        acl
    );
}

#[test]
fn a_file_with_thousands_of_holes() {
    let work = directory();
    let mut content = vec![0u8; 40 << 20];
    for block in (0..content.len()).step_by(9 * 4096) {
        content[block] = 1;
    }
    let layer = Tar::default().file("holes", &content, FILE).end();
    let disk = work.path().join("disk");
    let built = build_plain(&[layer], &disk).unwrap();
    assert!(built.allocated_bytes < 6 << 20, "{built:?}");
    e2fsck(&disk);
    assert!(fs::read(Mounted::new(&disk).path().join("holes")).unwrap() == content);
}

#[test]
fn parents_that_are_symlinks_stay_inside_the_root() {
    let work = directory();
    let first = Tar::default()
        .dir("real/", DIR)
        .symlink("up", "../../../../..")
        .symlink("abs", "/real")
        .symlink("dangling", "not/yet/there")
        .symlink("chain", "abs")
        .end();
    let second = Tar::default()
        .file("up/in-root", b"1", FILE)
        .file("abs/in-real", b"2", FILE)
        .file("dangling/made", b"3", FILE)
        .file("chain/../beside", b"4", Meta { ..FILE });
    // `..` in a name is refused even where a link makes it harmless.
    assert!(build_plain(&[first.clone(), second.end()], &work.path().join("refused")).is_err());
    let second = Tar::default()
        .file("up/in-root", b"1", FILE)
        .file("abs/in-real", b"2", FILE)
        .file("dangling/made", b"3", FILE)
        .file("chain/by-chain", b"4", FILE)
        .end();
    let layers = [first, second];
    let disk = work.path().join("disk");
    build_plain(&layers, &disk).unwrap();
    let theirs = umoci(&layers, work.path());
    let mounted = Mounted::new(&disk);
    for name in [
        "in-root",
        "real/in-real",
        "not/yet/there/made",
        "real/by-chain",
    ] {
        assert!(mounted.path().join(name).is_file(), "{name}");
        assert!(theirs.join(name).is_file(), "umoci: {name}");
    }
}

#[test]
fn a_scratch_disk_is_empty_journaled_and_sparse() {
    let work = directory();
    for mebibytes in [16, 512, 16384] {
        let path = work.path().join(format!("scratch-{mebibytes}"));
        create_scratch(&path, mebibytes).unwrap();
        e2fsck(&path);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.len(), metadata.mode() & 0o7777),
            (mebibytes << 20, 0o600)
        );
        assert!(
            metadata.blocks() * 512 < 8 << 20,
            "{} bytes",
            metadata.blocks() * 512
        );
        let features = tool("e2fsprogs", "dumpe2fs", &["-h", path.to_str().unwrap()]);
        assert!(features.contains("has_journal"), "{features}");
    }
    assert_ne!(fs::read(work.path().join("scratch-16")).unwrap(), {
        create_scratch(&work.path().join("scratch-16"), 16).unwrap();
        fs::read(work.path().join("scratch-16")).unwrap()
    });
    for impossible in [0, 15, u64::MAX] {
        let error = create_scratch(&work.path().join("no"), impossible).unwrap_err();
        assert!(
            error.to_string().contains(&impossible.to_string()),
            "{error}"
        );
    }
}

#[test]
fn a_writable_disk_has_a_journal_and_takes_what_is_written() {
    let under = directory();
    let disk = under.path().join("writable.ext4");
    let tar = Tar::default()
        .dir("etc/", DIR)
        .file("etc/given", b"given", FILE.owner(1000, 1000))
        .end();
    let headroom = Headroom {
        bytes: 96 << 20,
        inodes: 2_000,
    };
    let layers = vec![source("bundle.tar", tar, Compression::Detect, None)];
    build_writable(
        layers,
        &disk,
        headroom,
        &BuildOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    e2fsck(&disk);
    let meta = fs::metadata(&disk).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert!(
        meta.blocks() * 512 < 2 << 20,
        "room costs nothing: {meta:?}"
    );
    let dump = tool("e2fsprogs", "dumpe2fs", &["-h", disk.to_str().unwrap()]);
    assert!(dump.contains("has_journal"), "{dump}");
    {
        let mounted = Mounted::writable(&disk);
        let given = mounted.path().join("etc/given");
        assert_eq!(fs::read(&given).unwrap(), b"given");
        assert_eq!(fs::metadata(&given).unwrap().uid(), 1000);
        fs::write(given, vec![3; 1 << 20]).unwrap();
        for index in 0..1_500 {
            fs::write(mounted.path().join(index.to_string()), [7; 100]).unwrap();
        }
        fs::write(mounted.path().join("big"), vec![5; 64 << 20]).unwrap();
    }
    e2fsck(&disk);
    let mounted = Mounted::new(&disk);
    assert_eq!(fs::read(mounted.path().join("1499")).unwrap(), [7; 100]);
    assert_eq!(
        fs::metadata(mounted.path().join("big")).unwrap().len(),
        64 << 20
    );
}
