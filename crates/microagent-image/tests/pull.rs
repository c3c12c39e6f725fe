//! Pulls from Debian's `docker-registry`, filled by `skopeo`: what a registry gives, and what it breaks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_disk::{DiskList, JoinedFile};
use microagent_image::disk::ChunkSums;
use microagent_image::{
    BaseDiskGuard, Credential, ImageError, ImageEvent, ImageRecord, ImageStore, Platform,
    PullOptions, PullPolicy, Reference, RegistryOptions,
};
use serde_json::json;
use testkit::registry::{
    self, Certificates, Layout, Packing, Registry, Setup, TinyImage, Wire, damage, noise, tar_of,
};

/// A store, a layout to push from, and a record of events, in one directory.
struct Bench {
    directory: tempfile::TempDir,
    store: ImageStore,
    events: Mutex<Vec<ImageEvent>>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self {
            directory,
            store,
            events: Mutex::default(),
        }
    }

    fn layout(&self) -> Layout {
        Layout::create(&self.directory.path().join("layout")).unwrap()
    }

    fn pull(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        self.pull_with(reference, &options())
    }

    fn pull_with(&self, reference: &str, options: &PullOptions) -> Result<ImageRecord, ImageError> {
        let reference: Reference = reference.parse().unwrap();
        self.store.pull(&reference, options, &|event| {
            self.events.lock().unwrap().push(event);
        })
    }

    /// Everything a failed pull must not leave: blobs, disks, records, rests. Layers that were converted stay for
    /// another pull, as parts of layers do, until somebody removes what nobody needs.
    fn assert_empty(&self) {
        let left = listing(&self.store.root().join("disks"));
        let is_of_piece = |name: &String| {
            let (stem, _) = name.rsplit_once('.').unwrap();
            left.contains(&format!("{stem}.piece"))
        };
        assert!(left.iter().all(is_of_piece), "{left:?}");
        self.store.reclaim(&BTreeSet::new()).unwrap();
        for folder in ["blobs/sha256", "disks", "tmp"] {
            assert_eq!(
                listing(&self.store.root().join(folder)),
                Vec::<String>::new(),
                "{folder}"
            );
        }
        assert_eq!(self.store.list().unwrap(), []);
    }
}

fn listing(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn options() -> PullOptions {
    let mut registry = RegistryOptions::default();
    registry.backoff = Duration::from_millis(20);
    registry.attempts = 3;
    PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry)
}

fn image(architecture: &str) -> TinyImage {
    TinyImage::new(architecture)
        .layer(tar_of(&[("etc/os-release", 0o644, b"ID=tiny\n")]), Packing::Gzip)
        .layer(tar_of(&[("bin/hello", 0o4755, b"#!/bin/sh\necho hello\n")]), Packing::Plain)
        .config(json!({"Cmd": ["/bin/hello"], "Env": ["A=1"], "User": "nobody", "StopSignal": "SIGINT"}))
}

/// Reads a file of a base disk with `debugfs`.
fn read_disk(disk: &Path, path: &str) -> String {
    let mut command = std::process::Command::new("/sbin/debugfs");
    let flat = JoinedFile::open(disk).unwrap().flat(disk).unwrap();
    command.arg("-R").arg(format!("cat {path}")).arg(flat);
    String::from_utf8(registry::run_tool("e2fsprogs", &mut command).unwrap()).unwrap()
}

#[test]
fn by_tag_by_digest_and_again() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let (digest, _) = layout.add("tiny:1", &[image("amd64")]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let tagged = bench.pull(&registry.reference("tiny:1")).unwrap();
    assert_eq!(tagged.digest.to_string(), digest);
    assert_eq!(tagged.layers.len(), 2);
    assert_eq!(tagged.index_digest, None);
    let events = bench.events.lock().unwrap().split_off(0);
    assert!(matches!(events.first(), Some(ImageEvent::Resolving { .. })));
    assert!(matches!(events.last(), Some(ImageEvent::Done { .. })));
    let ended = events.iter().filter(
        |event| matches!(event, ImageEvent::LayerProgress { bytes, total, .. } if bytes == total),
    );
    assert_eq!(ended.count(), 2);

    let config = bench.store.config(&tagged).unwrap();
    assert_eq!(
        (config.cmd, config.env),
        (vec!["/bin/hello".to_owned()], vec!["A=1".to_owned()])
    );
    assert_eq!(
        (config.user.as_deref(), config.stop_signal.as_deref()),
        (Some("nobody"), Some("SIGINT"))
    );

    let pinned = bench
        .pull(&registry.reference(&format!("tiny@{digest}")))
        .unwrap();
    assert_eq!(pinned.digest, tagged.digest);
    let events = bench.events.lock().unwrap();
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, ImageEvent::LayerExists { .. }))
            .count(),
        2
    );
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, ImageEvent::LayerProgress { .. }))
    );
    assert_eq!(bench.store.list().unwrap().len(), 2);

    for blob in fs::read_dir(bench.store.root().join("blobs/sha256")).unwrap() {
        let permissions = blob.unwrap().metadata().unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o7777,
            0o600
        );
    }

    // Other tools read the store as an OCI layout.
    let mut inspect = registry::skopeo();
    inspect.args(["inspect", "--raw"]).arg(format!(
        "oci:{}:{}",
        bench.store.root().display(),
        tagged.reference.canonical()
    ));
    let raw = registry::run_tool("skopeo", &mut inspect).unwrap();
    assert_eq!(registry::digest_of(&raw), digest);
}

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

#[test]
fn an_index_is_chosen_from_by_platform() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let (index, each) = layout
        .add("multi:1", &[image("arm64"), image("amd64")])
        .unwrap();
    registry.push(layout.path(), "multi:1").unwrap();
    let reference = registry.reference("multi:1");
    for (platform, digest) in [("linux/aarch64", &each[0]), ("linux/x86_64", &each[1])] {
        let record = bench
            .pull_with(&reference, &options().platform(platform.parse().unwrap()))
            .unwrap();
        assert_eq!(record.digest.to_string(), *digest);
        assert_eq!(record.index_digest.unwrap().to_string(), index);
    }
    let parsed: Reference = reference.parse().unwrap();
    let arm: Platform = "arm64".parse().unwrap();
    assert_eq!(
        bench
            .store
            .resolve(&parsed, &arm)
            .unwrap()
            .unwrap()
            .digest
            .to_string(),
        each[0]
    );
    // The index's digest names the image too.
    let pinned: Reference = format!("other/name@{index}").parse().unwrap();
    assert_eq!(
        bench
            .store
            .resolve(&pinned, &arm)
            .unwrap()
            .unwrap()
            .digest
            .to_string(),
        each[0]
    );
    let error = bench
        .pull_with(&reference, &options().platform("s390x".parse().unwrap()))
        .unwrap_err();
    assert!(matches!(error, ImageError::NoSuchPlatform { .. }));
    assert!(
        error
            .to_string()
            .contains("it has only: linux/amd64, linux/arm64"),
        "{error}"
    );
}

#[test]
fn zstd_layers() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let image =
        TinyImage::new("amd64").layer(tar_of(&[("zstd", 0o644, b"standard")]), Packing::Zstd);
    layout.add("z:1", &[image]).unwrap();
    registry.push(layout.path(), "z:1").unwrap();
    let record = bench.pull(&registry.reference("z:1")).unwrap();
    assert_eq!(
        record.layers[0].compression,
        microagent_image::manifest::Compression::Zstd
    );
    let disk = bench.store.base_disk(&record, &|_| {}).unwrap();
    assert_eq!(read_disk(&disk.path, "/zstd"), "standard");
}

#[test]
fn a_corrupted_blob_is_named_and_nothing_stored() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|n| tar_of(&[("file", 0o644, &noise(100_000, n))]))
        .collect();
    let image = layers.iter().fold(TinyImage::new("amd64"), |image, tar| {
        image.layer(tar.clone(), Packing::Plain)
    });
    layout.add("bad:1", &[image]).unwrap();
    registry.push(layout.path(), "bad:1").unwrap();
    let digest = registry::digest_of(&layers[1]);
    damage(&registry.blob_file(&digest)).unwrap();
    for build in [false, true] {
        let error = bench
            .pull_with(&registry.reference("bad:1"), &options().build_disk(build))
            .unwrap_err();
        assert!(
            matches!(error, ImageError::DigestMismatch { .. }),
            "{error:?}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("layer 2 of 3 ({digest})")),
            "{error}"
        );
        bench.assert_empty();
    }
}

#[test]
fn a_config_or_manifest_that_was_tampered_with_is_refused() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    let (digest, _) = layout.add("tiny:1", &[image("amd64")]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.blob_file(&digest)).unwrap()).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    damage(&registry.blob_file(config)).unwrap();
    let error = bench
        .pull(&registry.reference("tiny:1"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the configuration of") && error.contains("digest"),
        "{error}"
    );
    bench.assert_empty();
}

#[test]
fn broken_connections_are_resumed() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    let mut layout = bench.layout();
    let content = noise(8 << 20, 7);
    let image = TinyImage::new("amd64").layer(tar_of(&[("big", 0o644, &content)]), Packing::Plain);
    layout.add("big:1", &[image]).unwrap();
    registry.push(layout.path(), "big:1").unwrap();
    wire.cut(2 << 20, 3);
    // The disk is built meanwhile, from a layer that stops and goes on.
    let record = bench
        .pull_with(
            &format!("127.0.0.1:{}/big:1", wire.port()),
            &options().build_disk(true),
        )
        .unwrap();
    assert_eq!(record.layers.len(), 1);
    let disk = record.disk.unwrap();
    let big = fs::read(JoinedFile::open(&disk).unwrap().flat(&disk).unwrap()).unwrap();
    assert!(big.windows(64).any(|window| window == &content[..64]));
    let retries = bench
        .events
        .lock()
        .unwrap()
        .iter()
        .filter(|event| matches!(event, ImageEvent::Retrying { .. }))
        .count();
    assert_eq!(retries, 3);
    // Resumed, not begun again: little came twice.
    assert!(wire.carried() < 9 << 20, "{}", wire.carried());
}

#[test]
fn a_registry_killed_mid_download_leaves_nothing_and_works_again() {
    let bench = Bench::new();
    let mut registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    let mut layout = bench.layout();
    let image = TinyImage::new("amd64").layer(
        tar_of(&[("big", 0o644, &noise(8 << 20, 9))]),
        Packing::Plain,
    );
    layout.add("big:1", &[image]).unwrap();
    registry.push(layout.path(), "big:1").unwrap();
    let reference = format!("127.0.0.1:{}/big:1", wire.port());
    wire.slow(4 << 20);
    let killer = Mutex::new(Some(&mut registry));
    let killed = AtomicBool::new(false);
    let parsed: Reference = reference.parse().unwrap();
    let error = bench
        .store
        .pull(&parsed, &options().build_disk(true), &|event| {
            if matches!(event, ImageEvent::LayerProgress { bytes, total, .. } if bytes < total)
                && let Some(registry) = killer.lock().unwrap().take()
            {
                registry.kill();
                killed.store(true, Ordering::Relaxed);
            }
        })
        .unwrap_err();
    assert!(killed.load(Ordering::Relaxed));
    assert!(matches!(error, ImageError::Connection { .. }), "{error:?}");
    assert!(error.to_string().contains("layer 1 of 1"), "{error}");
    bench.assert_empty();
    registry.restart().unwrap();
    wire.slow(0);
    bench.pull(&reference).unwrap();
}

#[test]
fn what_is_not_there_and_who_may_not() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let error = bench.pull(&registry.reference("nothing:here")).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("nothing:here"), "{error}");

    let login = ("alice".to_owned(), "s3cret".to_owned());
    let guarded = Registry::start_with(Setup {
        login: Some(login),
        ..Setup::default()
    })
    .unwrap();
    let mut layout = bench.layout();
    layout.add("tiny:1", &[image("amd64")]).unwrap();
    guarded.push(layout.path(), "tiny:1").unwrap();
    let reference = guarded.reference("tiny:1");
    let error = bench.pull(&reference).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("log in"), "{error}");
    let with = |password: &str| {
        options().credentials(Arc::new(Credential::Basic {
            username: "alice".into(),
            password: password.into(),
        }))
    };
    let error = bench.pull_with(&reference, &with("wrong")).unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }),
        "{error:?}"
    );
    assert!(!error.to_string().contains("wrong"), "{error}");
    bench.assert_empty();
    bench.pull_with(&reference, &with("s3cret")).unwrap();
}

#[test]
fn policies() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    layout.add("tiny:1", &[image("amd64")]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let reference: Reference = registry.reference("tiny:1").parse().unwrap();
    let ensure = |policy| bench.store.ensure(&reference, policy, &options(), &|_| {});
    let error = ensure(PullPolicy::Never).unwrap_err();
    assert!(matches!(error, ImageError::NotLocal { .. }));
    let first = ensure(PullPolicy::Missing).unwrap();
    assert_eq!(ensure(PullPolicy::Never).unwrap(), first);
    // The tag moves.
    let other = TinyImage::new("amd64").layer(tar_of(&[("new", 0o644, b"")]), Packing::Gzip);
    layout.add("tiny:1", &[other]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    assert_eq!(ensure(PullPolicy::Missing).unwrap().digest, first.digest);
    let moved = ensure(PullPolicy::Always).unwrap();
    assert_ne!(moved.digest, first.digest);
    assert_eq!(bench.store.list().unwrap(), [moved]);
    drop(registry);
    assert_eq!(
        ensure(PullPolicy::Missing).unwrap().digest,
        bench.store.list().unwrap()[0].digest
    );
    assert!(matches!(
        ensure(PullPolicy::Always).unwrap_err(),
        ImageError::Connection { .. }
    ));
}

#[test]
fn inspect_and_remove_by_any_name() {
    let bench = Bench::new();
    let registry = Registry::start().unwrap();
    let mut layout = bench.layout();
    layout.add("tiny:1", &[image("amd64")]).unwrap();
    let more = image("amd64").layer(tar_of(&[("more", 0o644, b"")]), Packing::Gzip);
    layout.add("tiny:2", &[more]).unwrap();
    for name in ["tiny:1", "tiny:2"] {
        registry.push(layout.path(), name).unwrap();
        bench.pull(&registry.reference(name)).unwrap();
    }
    let store = &bench.store;
    let records = store.list().unwrap();
    for record in &records {
        let hex = record.digest.hex();
        for name in [
            record.reference.to_string(),
            record.digest.to_string(),
            hex[..12].to_owned(),
            hex,
        ] {
            assert_eq!(store.inspect(&name).unwrap().record, *record, "{name}");
        }
    }
    assert!(matches!(
        store.inspect("nope").unwrap_err(),
        ImageError::Unknown { .. }
    ));
    let first = store
        .remove(&records[0].digest.to_string(), &BTreeSet::new())
        .unwrap();
    assert_eq!(first.records.len(), 1);
    // The layers are shared with the other image: only manifest and config go.
    assert_eq!(first.reclaimed.files, 2);
    store.base_disk(&records[1], &|_| {}).unwrap();
    store
        .remove(&records[1].reference.to_string(), &BTreeSet::new())
        .unwrap();
    bench.assert_empty();
}

#[test]
fn tls_with_a_private_authority_and_without_any() {
    let bench = Bench::new();
    let certificates = Certificates::make(bench.directory.path()).unwrap();
    let tls = Some((certificates.certificate, certificates.key));
    let registry = Registry::start_with(Setup {
        tls,
        ..Setup::default()
    })
    .unwrap();
    let mut layout = bench.layout();
    layout.add("tiny:1", &[image("amd64")]).unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let reference = registry.reference("tiny:1");
    let error = bench.pull(&reference).unwrap_err();
    assert!(matches!(error, ImageError::Tls { .. }), "{error:?}");
    let mut trusting = RegistryOptions::default();
    trusting
        .extra_roots
        .push(fs::read(&certificates.authority).unwrap());
    bench
        .pull_with(&reference, &options().registry(trusting))
        .unwrap();
}
