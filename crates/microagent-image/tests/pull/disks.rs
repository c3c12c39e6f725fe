//! The base disk of an image that is pulled.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;

use microagent_disk::DiskList;
use microagent_image::disk::ChunkSums;
use microagent_image::{BaseDiskGuard, ImageError, ImageEvent};
use testkit::registry::{self, Packing, Registry, TinyImage, noise, tar_of};

use crate::{Bench, image, listing, options, read_disk};

#[test]
fn the_base_disk_is_built_once_and_kept_while_used() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    layout.add("tiny:1", &[image("amd64")]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let record = bench.pull(&registry.reference("tiny:1")).unwrap();
    assert_eq!((record.last_used, record.disk.as_ref()), (None, None));
    let built = Mutex::new(0);
    let disks: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    bench.store.base_disk(&record, &|event| {
                        if matches!(event, ImageEvent::DiskReady { existed: false, .. }) {
                            *built.lock().unwrap() += 1;
                        }
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().unwrap())
            .collect()
    });
    assert_eq!(*built.lock().unwrap(), 1);
    assert_eq!(read_disk(&disks[0].path, "/etc/os-release"), "ID=tiny\n");
    let list = fs::read(&disks[0].path).unwrap();
    assert_eq!(registry::digest_of(&list), disks[0].digest.to_string());
    let list = DiskList::read(&disks[0].path).unwrap();
    for file in list.files() {
        let path = disks[0].path.with_file_name(&file.name);
        let sums = fs::read(path.with_extension("sums")).unwrap();
        assert_eq!(
            registry::digest_of(&sums),
            format!("sha256:{}", file.digest)
        );
        let found = ChunkSums::of_file(&fs::File::open(path).unwrap()).unwrap();
        assert_eq!(found.digest().hex(), file.digest);
    }
    let flat = disks[0].flat().unwrap();
    assert_eq!(fs::metadata(&flat).unwrap().len(), disks[0].size_bytes);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(&disks[0].path).unwrap().permissions(),
    );
    assert_eq!(mode & 0o7777, 0o400);
    let mut fsck = std::process::Command::new("/sbin/e2fsck");
    registry::run_tool("e2fsprogs", fsck.arg("-fn").arg(&flat)).unwrap();
    assert!(bench.store.list().unwrap()[0].last_used.is_some());

    // In use: the record goes, the disk stays. Then nobody uses it and all goes.
    let path = disks[0].path.clone();
    let guard = BaseDiskGuard::hold(&path).unwrap();
    drop(disks);
    let removed = bench
        .store
        .remove(&record.reference.canonical(), &BTreeSet::new())
        .unwrap();
    assert_eq!(removed.records.len(), 1);
    assert_eq!(removed.reclaimed.in_use, std::slice::from_ref(&path));
    assert!(path.exists());
    drop(guard);
    // What is kept is kept in older formats too.
    let older = path.with_file_name(format!("{}.0.ext4", record.digest.hex()));
    fs::write(&older, b"older").unwrap();
    let kept = bench
        .store
        .reclaim(&BTreeSet::from([record.digest]))
        .unwrap();
    assert!(path.exists() && older.exists(), "{kept:?}");
    assert_eq!(
        bench.store.reclaim(&BTreeSet::new()).unwrap().files,
        4,
        "two disks and the layers of one"
    );
    bench.assert_empty();
    assert!(BaseDiskGuard::hold(&path).is_err());
}

/// Building while the layers come gives what building afterwards gives, whatever is here already and
/// with a layer that comes twice.
#[test]
fn the_disk_is_built_while_the_layers_come() {
    let registry = Registry::start().unwrap();
    let (one, two) = (Bench::new(), Bench::new());
    let mut layout = one.layout();
    let layer = |n| tar_of(&[("a", 0o644, &noise(3 << 20, n)), ("b", 0o600, b"x")]);
    let shared = TinyImage::new("amd64").layer(layer(1), Packing::Gzip);
    layout
        .add("first:1", std::slice::from_ref(&shared))
        .unwrap();
    let second = shared
        .layer(layer(2), Packing::Plain)
        .layer(layer(1), Packing::Gzip);
    layout.add("second:1", &[second]).unwrap();
    for name in ["first:1", "second:1"] {
        registry.push(layout.path(), name).unwrap();
    }
    for name in ["first:1", "second:1"] {
        let reference = registry.reference(name);
        let at_once = one
            .pull_with(&reference, &options().build_disk(true))
            .unwrap();
        assert!(at_once.disk.is_some());
        let later = two.pull(&reference).unwrap();
        assert_eq!(later.disk, None);
        let disks = [(&one, &at_once), (&two, &later)].map(|(bench, record)| {
            let events = |event| {
                let existed = std::ptr::eq(bench, &one);
                assert!(
                    !matches!(event, ImageEvent::DiskReady { existed: found, .. } if found != existed)
                );
            };
            bench.store.base_disk(record, &events).unwrap()
        });
        assert_eq!(disks[0].digest, disks[1].digest);
    }
}

/// A disk that cannot be built is no reason to lose the image, and asking for it tells why.
#[test]
fn an_image_whose_disk_cannot_be_built_is_pulled() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let image = TinyImage::new("amd64").layer(noise(4096, 3), Packing::Plain);
    layout.add("odd:1", &[image]).unwrap();
    registry.push(layout.path(), "odd:1").unwrap();
    let record = bench
        .pull_with(&registry.reference("odd:1"), &options().build_disk(true))
        .unwrap();
    assert_eq!(record.disk, None);
    let error = bench.store.base_disk(&record, &|_| {}).unwrap_err();
    assert!(matches!(error, ImageError::Disk { .. }), "{error:?}");
    assert_eq!(
        listing(&bench.store.root().join("tmp")),
        Vec::<String>::new()
    );
}
