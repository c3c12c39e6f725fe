//! SIGKILL at any instant of a pull, an import or a disk build: the next operation works and cleans up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use microagent_image::disk::ChunkSums;
use microagent_image::{ImageStore, ImportOptions, PullOptions, Reference, RegistryOptions};
use testkit::registry::{
    Layout, Packing, Registry, TinyImage, Wire, digest_of, noise, pack, tar_of,
};

const WORK: &str = "CRASH_TEST_WORK";
const STORE: &str = "CRASH_TEST_STORE";

fn options() -> PullOptions {
    PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(RegistryOptions::default())
}

fn pull_and_build(store: &Path, reference: &str) {
    let store = ImageStore::open(store).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let record = store.pull(&reference, &options(), &|_| {}).unwrap();
    store.base_disk(&record, &|_| {}).unwrap();
}

fn import(store: &Path, file: &str) {
    let store = ImageStore::open(store).unwrap();
    let options = ImportOptions::new().reference("imported:1".parse().unwrap());
    store.import(Path::new(file), &options, &|_| {}).unwrap();
}

/// Not a test by itself: what the tests below start in a process of its own, to kill it.
#[test]
fn child() {
    let (Ok(work), Ok(store)) = (std::env::var(WORK), std::env::var(STORE)) else {
        return;
    };
    match work.split_once(' ') {
        Some(("pull", reference)) => pull_and_build(Path::new(&store), reference),
        Some(("import", file)) => import(Path::new(&store), file),
        _ => panic!("what is `{work}`?"),
    }
}

/// Starts `work` on the store and kills it after `life`; true if it was still at it.
fn killed_after(store: &Path, work: &str, life: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env(WORK, work)
        .env(STORE, store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(life);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "{work}: {status}"
    );
    !status.success()
}

/// Whatever the store says it has is whole, and every rest is where the next operation sweeps.
fn assert_sound(root: &Path) {
    let store = ImageStore::open(root).unwrap();
    for record in store.list().unwrap() {
        store.config(&record).unwrap();
        for layer in &record.layers {
            let blob = std::fs::read(root.join("blobs/sha256").join(layer.digest.hex())).unwrap();
            assert_eq!(digest_of(&blob), layer.digest.to_string());
        }
        if let Some(path) = &record.disk {
            let disk = store.base_disk(&record, &|_| {}).unwrap();
            let sums = ChunkSums::of_file(&std::fs::File::open(path).unwrap()).unwrap();
            assert_eq!(sums.digest(), disk.digest);
        }
    }
    for entry in std::fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
        assert_eq!(digest_of(&std::fs::read(&path).unwrap()), name);
    }
}

/// Kills at growing ages until the work once ends first, then lets it run and looks for rests.
fn torture(work: &str, whole: &dyn Fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("images");
    let (mut life, mut kills) = (Duration::from_millis(10), 0);
    let deadline = Instant::now() + Duration::from_secs(90);
    while killed_after(&root, work, life) {
        kills += 1;
        assert_sound(&root);
        life = life * 5 / 4;
        assert!(Instant::now() < deadline, "never ends");
    }
    assert!(kills >= 3, "killed only {kills} times");
    whole(&root);
    assert_sound(&root);
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    let store = ImageStore::open(&root).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    let name = store.list().unwrap()[0].digest.to_string();
    store
        .remove(&name, &std::collections::BTreeSet::new())
        .unwrap();
    for folder in ["blobs/sha256", "disks", "locks", "tmp"] {
        assert_eq!(
            std::fs::read_dir(root.join(folder)).unwrap().count(),
            0,
            "{folder}"
        );
    }
}

fn content() -> Vec<u8> {
    tar_of(&[
        ("a", 0o644, &noise(1 << 20, 1)),
        ("b/c", 0o644, &noise(100_000, 2)),
    ])
}

#[test]
fn killed_while_pulling() {
    let registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(16 << 20);
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let image = TinyImage::new("amd64")
        .layer(content(), Packing::Plain)
        .layer(tar_of(&[("d", 0o644, &noise(300_000, 3))]), Packing::Gzip);
    layout.add("big:1", &[image]).unwrap();
    registry.push(layout.path(), "big:1").unwrap();
    let reference = format!("127.0.0.1:{}/big:1", wire.port());
    torture(&format!("pull {reference}"), &|root| {
        pull_and_build(root, &reference);
    });
}

#[test]
fn killed_while_importing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rootfs.tar.gz");
    std::fs::write(&file, pack(&content(), Packing::Gzip)).unwrap();
    let file = file.to_str().unwrap();
    torture(&format!("import {file}"), &|root| import(root, file));
}

#[test]
fn killed_while_importing_a_layout() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let image = TinyImage::new("amd64")
        .layer(content(), Packing::Gzip)
        .layer(tar_of(&[("d", 0o644, &noise(8 << 20, 3))]), Packing::Plain);
    layout.add("imported:1", &[image]).unwrap();
    let path = layout.path().to_str().unwrap();
    torture(&format!("import {path}"), &|root| import(root, path));
}
