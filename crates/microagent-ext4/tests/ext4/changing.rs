//! What we changed, the kernel and e2fsck find sound.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::Path,
};

use microagent_ext4::{Attributes, Change, Error, FileKind, Meta, ROOT};
use proptest::prelude::*;
use rustix::fs::{XattrFlags, setxattr};

use crate::oracle::{
    Mounted, assert_same, directory, e2fsck, mounted_facts, our_facts, scratch, volume,
};

const META: Meta = Meta {
    mode: 0o6754,
    uid: 70_000,
    gid: 4_000_000_000,
    mtime: (6_000_000_000, 123_456_789),
};

fn begin(disk: &Path) -> Change {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk)
        .unwrap();
    Change::begin(file).unwrap()
}

fn add(change: &mut Change, folder: u32, name: &[u8], content: &[u8]) -> u32 {
    let mut file = change.make_file(META, folder).unwrap();
    file.write(change, content).unwrap();
    let number = file.finish(change).unwrap();
    change.link(folder, name, number).unwrap();
    number
}

fn attribute(name: &str, length: usize) -> (Vec<u8>, Vec<u8>) {
    (name.into(), vec![b'v'; length])
}

/// Everything there is to make.
fn fill(change: &mut Change, folder: u32) {
    add(change, folder, b"empty", b"");
    add(change, folder, b"hello", b"hello");
    add(change, folder, &[b'n'; 255], b"long");
    add(change, folder, b"\xff\xfe\n odd", b"odd");
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let number = add(change, folder, b"big", &big);
    change.link(folder, b"big-too", number).unwrap();
    let mut holes = change.make_file(META, folder).unwrap();
    holes.hole(change, 10_000).unwrap();
    for n in 0..1500_u32 {
        holes.write(change, &n.to_le_bytes()).unwrap();
        holes.hole(change, 30_001).unwrap();
    }
    let number = holes.finish(change).unwrap();
    change.link(folder, b"holes", number).unwrap();
    for length in [1, 59, 60, 61, 4000] {
        let link = change
            .make_symlink(&vec![b'x'; length], META, folder)
            .unwrap();
        change
            .link(folder, format!("link{length}").as_bytes(), link)
            .unwrap();
    }
    for (name, kind) in [
        ("null", FileKind::Character(1, 3)),
        ("high", FileKind::Character(511, 70_000)),
        ("whiteout", FileKind::Character(0, 0)),
        ("disk", FileKind::Block(7, 300)),
        ("pipe", FileKind::Fifo),
    ] {
        let node = change.make_special(kind, META, folder).unwrap();
        change.link(folder, name.as_bytes(), node).unwrap();
    }
    for (name, attributes) in [
        (
            "small",
            vec![
                attribute("user.a", 20),
                attribute("trusted.overlay.opaque", 1),
            ],
        ),
        (
            "large",
            vec![
                attribute("user.big", 3000),
                attribute("trusted.note", 20),
                attribute("user.b", 0),
            ],
        ),
        (
            "many",
            (0..20)
                .map(|n| attribute(&format!("user.attribute-{n}"), n))
                .collect(),
        ),
    ] {
        let number = add(change, folder, name.as_bytes(), b"x");
        change.set_attributes(number, &attributes).unwrap();
        let name = format!("{name}.d");
        change
            .make_directory(folder, name.as_bytes(), META, &attributes)
            .unwrap();
    }
    let many = change
        .make_directory(folder, b"crowd", META, &Attributes::new())
        .unwrap();
    for n in 0..3000 {
        add(
            change,
            many,
            format!("file-with-a-longish-name-{n}").as_bytes(),
            n.to_string().as_bytes(),
        );
    }
    let mut deep = folder;
    for n in 0..50 {
        deep = change
            .make_directory(deep, n.to_string().as_bytes(), META, &Attributes::new())
            .unwrap();
    }
}

/// Sound, and the same to us as to the kernel; which can use it.
fn check(disk: &Path) {
    e2fsck(disk);
    let ours = our_facts(&volume(disk));
    let mounted = Mounted::new(disk, "rw");
    assert_same(&ours, &mounted_facts(mounted.path()));
    let used = |n: u32| mounted.path().join(format!("used-{n}"));
    for n in 0..100 {
        fs::write(used(n), vec![n as u8; 10_000]).unwrap();
    }
    for n in 0..100 {
        fs::remove_file(used(n)).unwrap();
    }
    drop(mounted);
    e2fsck(disk);
}

#[test]
fn a_disk_that_was_never_used_is_filled() {
    let dir = directory();
    let disk = scratch(dir.path(), 128);
    let mut change = begin(&disk);
    let folder = change
        .make_directory(ROOT, b"upper", META, &Attributes::new())
        .unwrap();
    fill(&mut change, folder);
    change.commit().unwrap();
    let facts = our_facts(&volume(&disk));
    assert!(facts.len() > 3070, "{}", facts.len());
    assert!(
        facts[Path::new("upper/hello")].contains("6754 70000:4000000000 6000000000.123456789 x1")
    );
    check(&disk);
}

#[test]
fn what_the_kernel_made_is_changed() {
    let dir = directory();
    let disk = scratch(dir.path(), 256);
    let mounted = Mounted::new(&disk, "rw");
    let at = |name: &str| mounted.path().join(name);
    fs::create_dir_all(at("indexed")).unwrap();
    for n in 0..4000 {
        fs::write(
            at(&format!("indexed/file-with-a-longish-name-{n}")),
            n.to_string(),
        )
        .unwrap();
    }
    let scattered = File::create(at("scattered")).unwrap();
    for n in 0..3000 {
        scattered.write_all_at(b"x", n * 40_000).unwrap();
    }
    drop(scattered);
    fs::write(at("linked"), "linked").unwrap();
    fs::hard_link(at("linked"), at("linked-too")).unwrap();
    symlink("x".repeat(100), at("long-link")).unwrap();
    for n in 0..3 {
        // The kernel keeps equal attributes in one block.
        fs::write(at(&format!("shared-{n}")), "x").unwrap();
        setxattr(
            at(&format!("shared-{n}")),
            "user.large",
            &[7; 2000],
            XattrFlags::empty(),
        )
        .unwrap();
    }
    drop(mounted);
    let before = our_facts(&volume(&disk));

    let mut change = begin(&disk);
    let indexed = change.lookup(ROOT, b"indexed").unwrap().unwrap();
    add(
        &mut change,
        indexed,
        b"file-with-a-longish-name-77",
        b"replaced",
    );
    add(&mut change, indexed, b"another", b"another");
    for name in ["scattered", "linked", "long-link", "shared-1"] {
        add(&mut change, ROOT, name.as_bytes(), b"replaced");
    }
    fill(&mut change, ROOT);
    change.commit().unwrap();

    let after = our_facts(&volume(&disk));
    assert!(
        after[Path::new("linked-too")].contains("x1"),
        "one name is gone"
    );
    let kept = before
        .iter()
        .filter(|(path, fact)| after.get(*path) == Some(fact))
        .count();
    // All but the root, the directory, and what was replaced or has one name less.
    assert_eq!(before.len() - kept, 2 + 5 + 1);
    check(&disk);
}

#[test]
fn a_disk_that_a_killed_machine_left_is_changed() {
    let dir = directory();
    let disk = scratch(dir.path(), 128);
    let mounted = Mounted::new(&disk, "rw,commit=600");
    fs::create_dir(mounted.path().join("upper")).unwrap();
    for n in 0..2000 {
        fs::write(mounted.path().join(format!("upper/{n}")), n.to_string()).unwrap();
    }
    rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
    let theirs = mounted_facts(mounted.path());
    let torn = dir.path().join("torn.ext4");
    fs::copy(&disk, &torn).unwrap();
    drop(mounted);
    let mut change = begin(&torn);
    let upper = change.lookup(ROOT, b"upper").unwrap().unwrap();
    add(&mut change, upper, b"new", b"new");
    change.commit().unwrap();
    let ours = our_facts(&volume(&torn));
    assert_eq!(ours.len(), theirs.len() + 1);
    assert_eq!(
        ours[Path::new("upper/1999")],
        theirs[Path::new("upper/1999")]
    );
    check(&torn);
    // Nothing to do is nothing done.
    let image = fs::read(&torn).unwrap();
    begin(&torn).commit().unwrap();
    assert!(fs::read(&torn).unwrap() == image);
}

#[test]
fn a_full_disk_stays_as_it_was() {
    let dir = directory();
    let disk = scratch(dir.path(), 16);
    let mut change = begin(&disk);
    add(&mut change, ROOT, b"kept", &[1; 1 << 20]);
    change.commit().unwrap();
    let before = our_facts(&volume(&disk));

    let mut change = begin(&disk);
    let mut file = change.make_file(META, ROOT).unwrap();
    let error = loop {
        if let Err(error) = file.write(&mut change, &[2; 1 << 20]) {
            break error;
        }
    };
    assert!(matches!(error, Error::Full { .. }), "{error}");
    drop(change);
    let mut change = begin(&disk);
    let error = loop {
        match change.make_file(META, ROOT) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full { .. }), "{error}");
    drop(change);
    assert_eq!(our_facts(&volume(&disk)), before);
    // To the last block, and again in the room of what is replaced.
    for round in 0..3 {
        let mut change = begin(&disk);
        add(&mut change, ROOT, b"most", &vec![round; 5 << 20]);
        change.commit().unwrap();
        e2fsck(&disk);
    }
    check(&disk);
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = directory();
    let disk = scratch(dir.path(), 16);
    let mut change = begin(&disk);
    let folder = change
        .make_directory(ROOT, b"d", META, &Attributes::new())
        .unwrap();
    let file = add(&mut change, ROOT, b"f", b"f");
    for name in [&b""[..], b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(change.link(ROOT, name, file).is_err(), "{name:?}");
    }
    assert!(change.link(ROOT, b"d", file).is_err());
    assert!(change.make_symlink(b"", META, ROOT).is_err());
    assert!(change.make_symlink(&[b'x'; 4096], META, ROOT).is_err());
    for attributes in [
        vec![attribute("strange.a", 1)],
        vec![attribute("user.a", 5000)],
    ] {
        assert!(change.set_attributes(file, &attributes).is_err());
    }
    assert!(change.lookup(file, b"x").is_err() && change.inode(0).is_err());
    assert!(
        change.inode(u32::MAX).is_err()
            && change
                .make_directory(folder, b"", META, &Attributes::new())
                .is_err()
    );
    drop(change);
    e2fsck(&disk);
}

/// One step of a random change.
#[derive(Clone, Debug)]
enum Step {
    File(u8, u8, u32),
    Folder(u8, u8),
    Link(u8, u8, u8, u8),
    Symlink(u8, u8, u8),
    Attributes(u8, u8, u16),
    Commit,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), any::<u8>(), 0_u32..200_000).prop_map(|(f, n, size)| Step::File(f, n, size)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(f, n)| Step::Folder(f, n)),
        1 => (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c, d)| Step::Link(a, b, c, d)),
        1 => (any::<u8>(), any::<u8>(), 1_u8..).prop_map(|(f, n, length)| Step::Symlink(f, n, length)),
        1 => (any::<u8>(), any::<u8>(), 0_u16..3000).prop_map(|(f, n, length)| Step::Attributes(f, n, length)),
        1 => Just(Step::Commit),
    ]
}

/// Names by folder, and what stands there.
type Model = BTreeMap<String, BTreeMap<String, String>>;

fn pick(model: &Model, seed: u8) -> (String, &BTreeMap<String, String>) {
    let (path, entries) = model.iter().nth(usize::from(seed) % model.len()).unwrap();
    (path.clone(), entries)
}

fn resolve(change: &mut Change, path: &str) -> u32 {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(ROOT, |folder, name| {
            change.lookup(folder, name.as_bytes()).unwrap().unwrap()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_change_is_sound(steps in prop::collection::vec(steps(), 1..120)) {
        let dir = directory();
        let disk = scratch(dir.path(), 64);
        let mut change = begin(&disk);
        let mut model: Model = BTreeMap::from([(String::new(), BTreeMap::new())]);
        for step in steps {
            match step {
                Step::File(folder, name, size) => {
                    let (path, entries) = pick(&model, folder);
                    let name = format!("n{}", name % 16);
                    if entries.get(&name).is_some_and(|what| what == "folder") { continue; }
                    let at = resolve(&mut change, &path);
                    add(&mut change, at, name.as_bytes(), &vec![size as u8; size as usize]);
                    model.get_mut(&path).unwrap().insert(name, format!("file {size}"));
                }
                Step::Folder(folder, name) => {
                    let (path, entries) = pick(&model, folder);
                    let name = format!("n{}", name % 16);
                    if entries.contains_key(&name) { continue; }
                    let at = resolve(&mut change, &path);
                    change.make_directory(at, name.as_bytes(), META, &Attributes::new()).unwrap();
                    model.get_mut(&path).unwrap().insert(name.clone(), "folder".to_owned());
                    model.insert(format!("{path}/{name}"), BTreeMap::new());
                }
                Step::Link(from, from_name, to, to_name) => {
                    let (from, entries) = pick(&model, from);
                    let from_name = format!("n{}", from_name % 16);
                    let Some(what) = entries.get(&from_name).filter(|what| *what != "folder").cloned() else { continue };
                    let (to, entries) = pick(&model, to);
                    let to_name = format!("n{}", to_name % 16);
                    if entries.get(&to_name).is_some_and(|what| what == "folder") { continue; }
                    let at = resolve(&mut change, &from);
                    let number = change.lookup(at, from_name.as_bytes()).unwrap().unwrap();
                    let at = resolve(&mut change, &to);
                    change.link(at, to_name.as_bytes(), number).unwrap();
                    model.get_mut(&to).unwrap().insert(to_name, what);
                }
                Step::Symlink(folder, name, length) => {
                    let (path, entries) = pick(&model, folder);
                    let name = format!("n{}", name % 16);
                    if entries.get(&name).is_some_and(|what| what == "folder") { continue; }
                    let at = resolve(&mut change, &path);
                    let link = change.make_symlink(&vec![b'x'; usize::from(length)], META, at).unwrap();
                    change.link(at, name.as_bytes(), link).unwrap();
                    model.get_mut(&path).unwrap().insert(name, format!("link {length}"));
                }
                Step::Attributes(folder, name, length) => {
                    let (path, entries) = pick(&model, folder);
                    let name = format!("n{}", name % 16);
                    // The kernel shows none of a link.
                    if entries.get(&name).is_none_or(|what| what.starts_with("link")) {
                        continue;
                    }
                    let at = resolve(&mut change, &path);
                    let number = change.lookup(at, name.as_bytes()).unwrap().unwrap();
                    change.set_attributes(number, &vec![attribute("user.a", length.into())]).unwrap();
                }
                Step::Commit => {
                    change.commit().unwrap();
                    change = begin(&disk);
                }
            }
        }
        change.commit().unwrap();
        e2fsck(&disk);
        let mounted = Mounted::new(&disk, "ro");
        assert_same(&our_facts(&volume(&disk)), &mounted_facts(mounted.path()));
        for (folder, entries) in &model {
            let path = mounted.path().join(folder.trim_start_matches('/'));
            let expected = entries.len() + usize::from(folder.is_empty());
            prop_assert_eq!(fs::read_dir(&path).unwrap().count(), expected, "{}", folder);
            for (name, what) in entries {
                let meta = fs::symlink_metadata(path.join(name)).unwrap();
                let seen = if meta.is_dir() { "folder".to_owned() }
                    else if meta.is_symlink() { format!("link {}", meta.size()) }
                    else { format!("file {}", meta.size()) };
                prop_assert_eq!(&seen, what, "{}/{}", folder, name);
            }
        }
    }
}
