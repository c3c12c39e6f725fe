//! What a user can hand over as an image: `docker save` and OCI archives, and tars of root file systems. The first
//! byte says whether the rest is the file itself, or the parts of an archive whose digests are then set right, as
//! an attacker would.
#![no_main]

#[path = "../shared/checksums.rs"]
mod checksums;
#[path = "../../crates/microagent-image/tests/disk/archive.rs"]
#[allow(dead_code, reason = "the tests' module holds more than is needed here")]
mod tar;

use std::{collections::BTreeSet, fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use microagent_image::{Digest, ImageStore, ImportOptions};

struct Bench {
    file: PathBuf,
    store: ImageStore,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("archive-{}", std::process::id()));
    let store = ImageStore::open(directory.join("images")).unwrap();
    Bench {
        file: directory.join("image"),
        store,
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((selector, data)) = data.split_first() else {
        return;
    };
    match selector {
        b'd' => import(&docker(data)),
        b'o' => import(&oci(data)),
        _ => {
            if !import_is_good(data) {
                import(&checksums::with_checksums(data));
            }
        }
    }
});

fn import(archive: &[u8]) {
    let _either_way = import_is_good(archive);
}

/// Imports an archive; whichever way it goes, nothing may stay behind that is not named.
fn import_is_good(archive: &[u8]) -> bool {
    let bench = &*BENCH;
    fs::write(&bench.file, archive).unwrap();
    let options = ImportOptions::new()
        .reference("fuzz:1".parse().unwrap())
        .platform("linux/amd64".parse().unwrap())
        .build_disk(false);
    let imported = bench.store.import(&bench.file, &options, &|_| {});
    if let Ok(record) = &imported {
        let name = record.digest.to_string();
        let needed = BTreeSet::<Digest>::new();
        bench.store.remove(&name, &needed).unwrap();
    }
    for rest in ["tmp", "blobs/sha256"] {
        let left = fs::read_dir(bench.store.root().join(rest)).unwrap().count();
        assert_eq!(left, 0, "{rest} after {imported:?}");
    }
    imported.is_ok()
}

/// The parts are separated by this byte, which no UTF-8 text holds.
fn parts(data: &[u8], most: usize) -> Vec<Vec<u8>> {
    data.splitn(most, |byte| *byte == 0xff)
        .map(<[u8]>::to_vec)
        .collect()
}

/// `manifest.json`, `c.json`, `l.tar`; an `@` in the second is the digest of the third.
fn docker(data: &[u8]) -> Vec<u8> {
    let mut parts = parts(data, 3);
    parts.resize(3, Vec::new());
    let layer = Digest::of(&parts[2]).to_string();
    let config = replaced(&parts[1], &[(b'@', &layer)]);
    tar::Tar::default()
        .file("manifest.json", &parts[0], tar::FILE)
        .file("c.json", &config, tar::FILE)
        .file("l.tar", &parts[2], tar::FILE)
        .end()
}

/// `index.json`, a manifest, a configuration and a layer; an `@` is the digest and a `~` the size of the part after,
/// and a `^` and a backtick are those of the layer.
fn oci(data: &[u8]) -> Vec<u8> {
    let mut parts = parts(data, 4);
    parts.resize(4, Vec::new());
    let facts = |bytes: &[u8]| (Digest::of(bytes).to_string(), bytes.len().to_string());
    let layer = facts(&parts[3]);
    let mut after = layer.clone();
    let mut tar = tar::Tar::default().file(
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        tar::FILE,
    );
    for part in (0..3).rev() {
        let stored = &parts[part + 1];
        let name = format!("blobs/sha256/{}", Digest::of(stored).hex());
        tar = tar.file(&name, stored, tar::FILE);
        let marks = [
            (b'@', &*after.0),
            (b'~', &*after.1),
            (b'^', &*layer.0),
            (b'`', &*layer.1),
        ];
        parts[part] = replaced(&parts[part], &marks);
        after = facts(&parts[part]);
    }
    tar.file("index.json", &parts[0], tar::FILE).end()
}

fn replaced(text: &[u8], marks: &[(u8, &str)]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(text.len());
    for byte in text {
        match marks.iter().find(|(mark, _)| mark == byte) {
            Some((_, with)) => filled.extend_from_slice(with.as_bytes()),
            None => filled.push(*byte),
        }
    }
    filled
}
