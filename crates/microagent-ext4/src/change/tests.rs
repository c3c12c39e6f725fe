//! A commit that is cut anywhere leaves the old file system or the new one.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use super::{Change, Meta};
use crate::{FileKind, ROOT, Volume, volume::Written};

const META: Meta = Meta {
    mode: 0o640,
    uid: 1,
    gid: 2,
    mtime: (3, 4),
};

/// Every path and what is there.
fn facts(disk: &Path) -> BTreeMap<String, String> {
    let volume = Volume::open(File::open(disk).unwrap()).unwrap();
    let mut facts = BTreeMap::new();
    let mut left = vec![(String::new(), volume.inode(ROOT).unwrap())];
    while let Some((path, inode)) = left.pop() {
        let mut fact = format!("{:?} {:o} {}", inode.kind(), inode.mode(), inode.links());
        match inode.kind() {
            FileKind::Directory => {
                for entry in volume.entries(&inode).unwrap() {
                    let name = String::from_utf8(entry.name).unwrap();
                    left.push((format!("{path}/{name}"), volume.inode(entry.inode).unwrap()));
                }
            }
            FileKind::File => {
                let mut bytes = vec![0; inode.size() as usize];
                volume
                    .content(&inode)
                    .unwrap()
                    .read_at(0, &mut bytes)
                    .unwrap();
                fact.push_str(&format!(
                    " {} {:x}",
                    bytes.len(),
                    crate::bytes::crc32c(!0, &bytes)
                ));
            }
            _ => fact.push_str(&format!(" {:?}", volume.target(&inode))),
        }
        fact.push_str(&format!(" {:?}", volume.attributes(&inode).unwrap()));
        facts.insert(path, fact);
    }
    facts
}

fn begin(disk: &Path) -> Change {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk)
        .unwrap();
    Change::begin(file).unwrap()
}

fn add(change: &mut Change, folder: u32, name: &str, content: &[u8]) {
    let mut file = change.make_file(META, folder).unwrap();
    file.write(change, content).unwrap();
    let number = file.finish(change).unwrap();
    change.link(folder, name.as_bytes(), number).unwrap();
}

/// Replaces, adds, removes: a bit of everything that a commit journals.
fn edit(change: &mut Change) {
    let folder = change.lookup(ROOT, b"folder").unwrap().unwrap();
    add(change, folder, "file-7", &[9; 50_000]);
    add(change, folder, "new", b"new");
    let inner = change
        .make_directory(
            folder,
            b"inner",
            META,
            &vec![(b"user.a".to_vec(), vec![1; 200])],
        )
        .unwrap();
    for n in 0..40 {
        add(change, inner, &format!("n{n}"), &[n as u8; 5000]);
    }
    let link = change.make_symlink(b"elsewhere", META, folder).unwrap();
    change.link(folder, b"file-8", link).unwrap();
    let old = change.lookup(folder, b"file-9").unwrap().unwrap();
    change.link(inner, b"too", old).unwrap();
}

fn replay(image: &mut File, writes: &[&Written]) {
    for (at, bytes) in writes.iter().copied().flatten() {
        image.write_all_at(bytes, *at).unwrap();
    }
}

fn repaired(disk: &Path) {
    let done = Command::new("e2fsck")
        .arg("-fy")
        .arg(disk)
        .output()
        .unwrap();
    // 1: errors were corrected, such as a journal that was replayed.
    assert!(matches!(done.status.code(), Some(0 | 1)), "{done:?}");
}

#[test]
fn a_commit_that_is_cut_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    microagent_image::disk::create_scratch(&disk, 16).unwrap();
    let mut change = begin(&disk);
    let folder = change
        .make_directory(ROOT, b"folder", META, &Vec::new())
        .unwrap();
    for n in 0..300 {
        add(&mut change, folder, &format!("file-{n}"), &[n as u8; 300]);
    }
    change.commit().unwrap();

    let image = fs::read(&disk).unwrap();
    let before = facts(&disk);
    let mut change = begin(&disk);
    edit(&mut change);
    let writes = {
        // The commit takes the change with it; what it wrote is told by the disk it wrote to.
        let (writes, done) = change.commit_recording();
        done.unwrap();
        writes
    };
    let after = facts(&disk);
    assert_ne!(before, after);
    let syncs: Vec<_> = (0..writes.len())
        .filter(|at| writes[*at].is_none())
        .collect();
    assert!(syncs.len() >= 6, "{} syncs", syncs.len());

    let torn = dir.path().join("torn");
    let mut committed = false;
    let mut seed = 1_u64;
    for cut in 0..=writes.len() {
        let synced = syncs
            .iter()
            .rev()
            .find(|at| **at < cut)
            .map_or(0, |at| at + 1);
        // All that was synced, and of the rest everything, or any part.
        for variant in 0..3 {
            let mut kept: Vec<_> = writes[..synced].iter().collect();
            kept.extend(writes[synced..cut].iter().filter(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                variant == 0 || seed >> 33 & 1 == 0
            }));
            fs::write(&torn, &image).unwrap();
            let mut file = OpenOptions::new().write(true).open(&torn).unwrap();
            replay(&mut file, &kept);
            let now = facts(&torn);
            assert!(
                now == before || now == after,
                "cut at {cut} of {}",
                writes.len()
            );
            if variant == 0 {
                assert!(!committed || now == after, "it went back at {cut}");
                committed = now == after;
                if syncs.contains(&cut) || cut % 37 == 0 {
                    repaired(&torn);
                    assert_eq!(facts(&torn), now, "e2fsck disagrees at {cut}");
                }
            }
            // Whoever changes it next finds the same.
            if syncs.contains(&cut) {
                let mut change = begin(&torn);
                change.set_meta(ROOT, META).unwrap();
                change.commit().unwrap();
                let mut again = facts(&torn);
                let mut expected = now;
                again.remove("");
                expected.remove("");
                assert_eq!(again, expected);
                let checked = Command::new("e2fsck")
                    .arg("-fn")
                    .arg(&torn)
                    .output()
                    .unwrap();
                assert!(checked.status.success(), "{checked:?}");
            }
        }
    }
    assert!(committed);
}
