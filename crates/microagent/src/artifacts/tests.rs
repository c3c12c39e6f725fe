//! What comes of streams that a guest made up.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use microagent_files::{
    CopyError,
    tar::{Entry, EntryKind, TarLimits, TarReader, TarWriter},
};
use proptest::prelude::*;

use super::{
    ArtifactKind, ArtifactState, check,
    content::{self, Folder},
};
use crate::{error::Error, files::sha256};

/// The room of a machine.
const ROOM: u64 = 1 << 30;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o6754,
        uid: 0,
        gid: 0,
        mtime: (7, 0),
        size: 0,
        xattrs: Vec::new(),
    }
}

fn directory(path: &str) -> (Entry, Vec<u8>) {
    (entry(path, EntryKind::Directory), Vec::new())
}

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = entry(path, EntryKind::File);
    entry.size = content.len() as u64;
    (entry, content.to_vec())
}

fn other(path: &str, kind: EntryKind) -> (Entry, Vec<u8>) {
    (entry(path, kind), Vec::new())
}

fn stream(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (entry, content) in entries {
        writer.entry(entry, None).unwrap();
        writer.content(content).unwrap();
    }
    writer.finish().unwrap()
}

/// A file of which only `segments` are stored.
fn sparse(path: &str, size: u64, segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    let mut entry = entry(path, EntryKind::File);
    entry.size = size;
    let map: Vec<_> = segments
        .iter()
        .map(|(offset, data)| (*offset, data.len() as u64))
        .collect();
    writer.entry(&entry, Some(&map)).unwrap();
    for (_, data) in segments {
        writer.content(data).unwrap();
    }
    writer.finish().unwrap()
}

fn take(stream: &[u8], path: &str, into: Option<&Folder>) -> Result<ArtifactState, Error> {
    let taken = content::take(stream, &path.parse().unwrap(), ROOM, into)?;
    taken.publish(&"it".parse().unwrap(), 0)
}

/// Kind, size, sum and how much was left out.
fn facts(state: ArtifactState) -> (ArtifactKind, u64, String, u64) {
    match state {
        ArtifactState::Present {
            kind,
            size_bytes,
            sha256,
            skipped,
            ..
        } => (kind, size_bytes, sha256, skipped),
        ArtifactState::Missing { error } => panic!("{error:?}"),
    }
}

fn refusal(stream: &[u8], path: &str) -> String {
    take(stream, path, None).unwrap_err().to_string()
}

#[test]
fn a_file_comes_as_it_is_with_its_sum() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::make(&dir.path().join("made")).unwrap();
    let saved = dir.path().join("made/it");
    let state = take(&stream(&[file("r", b"word")]), "/out/r", Some(&folder)).unwrap();
    assert!(
        matches!(&state, ArtifactState::Present { saved_as, .. } if saved_as.as_ref() == Some(&saved))
    );
    let expected = (ArtifactKind::File, 4, sha256(b"word"), 0);
    assert_eq!(facts(state), expected);
    assert_eq!(fs::read(&saved).unwrap(), b"word");
    // What gives rights stays in the guest.
    assert_eq!(fs::metadata(&saved).unwrap().mode() & 0o7777, 0o754);
    // A look at it is the same without the file.
    let state = take(&stream(&[file("r", b"word")]), "/out/r", None).unwrap();
    assert_eq!(facts(state), expected);
    assert_eq!(fs::read_dir(dir.path().join("made")).unwrap().count(), 1);
}

#[test]
fn holes_make_no_difference_to_the_sum_and_stay_holes_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::make(dir.path()).unwrap();
    let mut whole = vec![0; 3 << 20];
    whole[1 << 20..(1 << 20) + 3].copy_from_slice(b"mid");
    let expected = (ArtifactKind::File, 3 << 20, sha256(&whole), 0);
    let holes = sparse("r", 3 << 20, &[(1 << 20, b"mid")]);
    for stream in [stream(&[file("r", &whole)]), holes] {
        let state = take(&stream, "/r", Some(&folder)).unwrap();
        assert_eq!(facts(state), expected);
        assert_eq!(fs::read(dir.path().join("it")).unwrap(), whole);
        assert!(fs::metadata(dir.path().join("it")).unwrap().blocks() * 512 < 1 << 20);
    }
}

#[test]
fn a_directory_comes_as_one_tar() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::make(dir.path()).unwrap();
    let entries = [
        directory("site"),
        file("site/a", b"a"),
        other("site/b", EntryKind::HardLink(b"site/a".to_vec())),
        directory("site/d"),
        other("site/d/null", EntryKind::Character(1, 3)),
        other(
            "site/d/null-too",
            EntryKind::HardLink(b"site/d/null".to_vec()),
        ),
        other("site/d/out", EntryKind::Symlink(b"/etc".to_vec())),
        file("site/e", b""),
    ];
    let state = take(&stream(&entries), "/srv/site", Some(&folder)).unwrap();
    let tar = fs::read(dir.path().join("it.tar")).unwrap();
    let size = tar.len() as u64;
    assert_eq!(
        facts(state),
        (ArtifactKind::Directory, size, sha256(&tar), 2)
    );
    assert_eq!(
        names(&tar),
        ["site", "site/a", "site/b", "site/d", "site/d/out", "site/e"]
    );
    assert_eq!(
        fs::metadata(dir.path().join("it.tar")).unwrap().mode() & 0o7777,
        0o644
    );
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut reader = TarReader::new(tar, TarLimits::default());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let name = String::from_utf8(entry.path).unwrap();
        names.push(name.trim_end_matches('/').to_owned());
    }
    names
}

#[test]
fn streams_that_are_no_tree_are_refused() {
    let link = |path: &str| other(path, EntryKind::Symlink(b"/etc".to_vec()));
    for (entries, words) in [
        (vec![file("r", b""), file("r", b"")], "one too many"),
        (vec![file("x", b"")], "asked for"),
        (vec![file("r/x", b"")], "neither"),
        (vec![link("r")], "neither"),
        (vec![other("r", EntryKind::Fifo)], "neither"),
        (vec![directory("r"), file("../r", b"")], "climbs"),
        (vec![directory("r"), file("/r/a", b"")], "absolute"),
        (
            vec![directory("r"), file("r/a", b""), file("r/a", b"")],
            "twice",
        ),
        (vec![directory("r"), directory("r")], "twice"),
        (vec![directory("r"), link("r/a"), directory("r/a")], "twice"),
        (
            vec![directory("r"), link("r/a"), file("r/a/passwd", b"")],
            "below",
        ),
        (vec![directory("r"), file("r/a/b", b"")], "below"),
        (
            vec![
                directory("r"),
                directory("r/a"),
                file("r/b", b""),
                file("r/a/c", b""),
            ],
            "below",
        ),
        (vec![], "missing"),
    ] {
        let error = refusal(&stream(&entries), "/out/r");
        assert!(error.contains(words), "{entries:?}: {error}");
    }
    let whole = stream(&[directory("r"), file("r/a", &[1; 3000])]);
    for cut in (0..whole.len() - 512).step_by(256) {
        assert!(take(&whole[..cut], "/r", None).is_err(), "{cut}");
    }
}

#[test]
fn a_hard_link_leads_only_to_what_came_before() {
    let link = |target: &str| other("r/z", EntryKind::HardLink(target.into()));
    for target in ["r/none", "r", "r/s/passwd", "r/d", "r/z"] {
        let entries = [
            directory("r"),
            file("r/a", b"a"),
            directory("r/d"),
            other("r/s", EntryKind::Symlink(b"/etc".to_vec())),
            link(target),
        ];
        let state = take(&stream(&entries), "/r", None).unwrap();
        assert_eq!(facts(state).3, 1, "{target}");
    }
}

#[test]
fn what_is_larger_than_the_machine_is_refused_before_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::make(dir.path()).unwrap();
    let huge = sparse("r", 1 << 40, &[(0, b"x")]);
    let error = take(&huge, "/out/r", Some(&folder))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/out/r takes 1099511627776 bytes"),
        "{error}"
    );
    let mut writer = TarWriter::new(Vec::new());
    writer.entry(&directory("r").0, None).unwrap();
    for name in ["r/a", "r/b", "r/c"] {
        let mut entry = entry(name, EntryKind::File);
        entry.size = ROOM / 2;
        writer.entry(&entry, Some(&[])).unwrap();
    }
    let error = refusal(&writer.finish().unwrap(), "/r");
    assert!(error.contains("room for"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_old_file_stays_until_the_new_one_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::make(dir.path()).unwrap();
    let at = |name: &str| dir.path().join(name);
    let whole = stream(&[file("r", &[b'n'; 3000])]);
    fs::write(at("it"), "old").unwrap();
    assert!(take(&whole[..2048], "/r", Some(&folder)).is_err());
    assert_eq!(fs::read(at("it")).unwrap(), b"old");
    take(&whole, "/r", Some(&folder)).unwrap();
    assert_eq!(fs::read(at("it")).unwrap().len(), 3000);

    // A link of the host's in its place is replaced and not followed; a directory stays.
    fs::write(at("canary"), "alive").unwrap();
    fs::remove_file(at("it")).unwrap();
    symlink(at("canary"), at("it")).unwrap();
    take(&whole, "/r", Some(&folder)).unwrap();
    assert!(fs::symlink_metadata(at("it")).unwrap().is_file());
    assert_eq!(fs::read(at("canary")).unwrap(), b"alive");
    fs::remove_file(at("it")).unwrap();
    fs::create_dir(at("it")).unwrap();
    let error = take(&whole, "/r", Some(&folder)).unwrap_err();
    assert!(
        matches!(&error, Error::Copy(inner) if matches!(**inner, CopyError::Conflict { .. })),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_directory_that_cannot_be_written_is_found_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let occupied = dir.path().join("file");
    fs::write(&occupied, "").unwrap();
    for bad in [&occupied, Path::new("/proc/microagent")] {
        let error = super::prepare(bad).unwrap_err().to_string();
        assert!(error.contains(bad.to_str().unwrap()), "{error}");
    }
    let error = super::prepare(Path::new("/proc/self")).unwrap_err();
    assert!(error.to_string().contains("/proc/self"), "{error}");
}

#[test]
fn declarations_that_cannot_all_be_kept_are_refused() {
    let declared =
        |texts: &[&str]| -> Vec<_> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    check(&declared(&["a=/a", "b=/a", "a.txt=/b", "b.tar=/c"][..3])).unwrap();
    for (texts, words) in [
        (&["a=/a", "a=/b"][..], "a is given twice"),
        (&["a.tar=/a", "a=/b"], "a.tar"),
    ] {
        let error = check(&declared(texts)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let many: Vec<_> = (0..65)
        .map(|n| format!("a{n}=/a").parse().unwrap())
        .collect();
    assert!(check(&many).unwrap_err().to_string().contains("64"));
}

#[derive(Clone, Debug)]
enum Made {
    Directory,
    File,
    Symlink,
    HardLink(String),
}

fn place() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]", 0..4).prop_map(|parts| {
        let mut path = "r".to_owned();
        for part in parts {
            path.push('/');
            path.push_str(&part);
        }
        path
    })
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => Just(Made::Directory),
        2 => Just(Made::File),
        2 => Just(Made::Symlink),
        2 => place().prop_map(Made::HardLink),
    ]
}

proptest! {
    /// Whatever a guest sends: a tar that comes of it has each name once, below a directory that is in
    /// it, and hard links only to what came before.
    #[test]
    fn a_tar_leads_nowhere(made in proptest::collection::vec((place(), made()), 0..8)) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(dir.path()).unwrap();
        let mut entries = vec![directory("r")];
        entries.extend(made.iter().map(|(path, made)| match made {
            Made::Directory => directory(path),
            Made::File => file(path, b"content"),
            Made::Symlink => other(path, EntryKind::Symlink(b"../../etc".to_vec())),
            Made::HardLink(target) => other(path, EntryKind::HardLink(target.as_bytes().to_vec())),
        }));
        if take(&stream(&entries), "/r", Some(&folder)).is_err() {
            return Ok(());
        }
        let tar = fs::read(dir.path().join("it.tar")).unwrap();
        let mut reader = TarReader::new(&tar[..], TarLimits::default());
        let mut came: HashMap<Vec<u8>, bool> = HashMap::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path).to_vec();
            if let Some(at) = path.iter().rposition(|byte| *byte == b'/') {
                prop_assert_eq!(came.get(&path[..at]), Some(&true));
            }
            if let EntryKind::HardLink(target) = &entry.kind {
                prop_assert_eq!(came.get(target), Some(&false));
            }
            let is_directory = entry.kind == EntryKind::Directory;
            prop_assert!(came.insert(path, is_directory).is_none());
        }
    }
}
