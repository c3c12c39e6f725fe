//! SIGKILL at any instant of an export or a commit: what has a name is whole, and the rest is swept or says what it is.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use microagent_image::disk::create_scratch;
use microagent_image::{
    CommitOptions, Digest, ExportFormat, ExportOptions, ExportTo, ImageStore, UpperDirectory,
};
use testkit::registry::{Packing, digest_of, noise, tar_of};

use super::Bench;
use crate::oracle::Mounted;

const PLACE: &str = "TRANSFER_CRASH_TEST_PLACE";

/// What is killed: a commit, then an export of what it made.
fn work(place: &Path) -> Digest {
    let store = ImageStore::open(place.join("images")).unwrap();
    let base = store.inspect("base:1").unwrap().record.digest;
    let upper = UpperDirectory {
        disk: &place.join("scratch.ext4"),
        name: b"upper",
        without: &[],
    };
    let committed = store
        .commit(
            base,
            &upper,
            &"made:1".parse().unwrap(),
            &CommitOptions::new(),
            &|_| {},
        )
        .unwrap();
    let options = ExportOptions::new(ExportFormat::OciArchive);
    let to = place.join("out/made.tar");
    store
        .export(&["made:1".into()], &options, ExportTo::Path(&to), &|_| {})
        .unwrap();
    committed.image.digest
}

/// Not a test by itself: what the test below starts in a process of its own, to kill it.
#[test]
fn child() {
    if let Ok(place) = std::env::var(PLACE) {
        work(Path::new(&place));
    }
}

#[test]
fn killed_while_committing_and_exporting() {
    let bench = Bench::new();
    let place = bench.directory.path();
    bench.image(
        "base:1",
        &[tar_of(&[("f", 0o644, &noise(3 << 20, 1))])],
        Packing::Plain,
    );
    let scratch = bench.path("scratch.ext4");
    create_scratch(&scratch, 64).unwrap();
    {
        let mounted = Mounted::writable(&scratch);
        fs::create_dir_all(mounted.path().join("upper/d")).unwrap();
        fs::write(mounted.path().join("upper/d/big"), noise(6 << 20, 2)).unwrap();
    }
    fs::create_dir(bench.path("out")).unwrap();
    // What it is when nobody interferes.
    let digest = work(place);
    let tar = bench.path("out/made.tar");
    let whole = digest_of(&fs::read(&tar).unwrap());
    let forget = || {
        bench
            .store
            .remove("made:1", &std::collections::BTreeSet::new())
            .unwrap();
        fs::remove_file(&tar).unwrap();
    };
    forget();

    let (mut life, mut kills) = (Duration::from_millis(5), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child"])
            .env(PLACE, place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(life);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        for record in bench.store.list().unwrap() {
            for layer in &record.layers {
                let blob = bench
                    .store
                    .root()
                    .join("blobs/sha256")
                    .join(layer.digest.hex());
                assert_eq!(
                    digest_of(&fs::read(blob).unwrap()),
                    layer.digest.to_string()
                );
            }
        }
        for entry in fs::read_dir(bench.path("out")).unwrap() {
            let path = entry.unwrap().path();
            if path == tar {
                assert_eq!(digest_of(&fs::read(&path).unwrap()), whole);
            } else {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                assert!(name.starts_with(".microagent-export-"), "{name}");
            }
        }
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "{status}");
        kills += 1;
        life = life * 5 / 4;
        assert!(Instant::now() < deadline, "never ends");
    }
    assert!(kills >= 3, "killed only {kills} times");
    assert_eq!(bench.store.inspect("made:1").unwrap().record.digest, digest);
    forget();
    let left = fs::read_dir(bench.store.root().join("tmp")).unwrap();
    assert_eq!(left.count(), 0, "rests are swept");
}
