//! Pulls from Debian's `docker-registry`, filled by `skopeo`: what a registry gives, and what it breaks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
#[path = "../common/mod.rs"]
mod common;
mod disks;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use microagent_disk::JoinedFile;
use microagent_image::{
    Credential, ImageError, ImageEvent, ImageRecord, Platform, PullOptions, PullPolicy, Reference,
    RegistryOptions,
};
use serde_json::json;
use testkit::registry::{self, Certificates, Layout, Packing, Registry, Setup, TinyImage, tar_of};

use common::Bench;

impl Bench {
    fn layout(&self) -> Layout {
        Layout::create(&self.directory.path().join("layout")).unwrap()
    }

    fn pull(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        self.pull_with(reference, &options())
    }

    fn pull_with(&self, reference: &str, options: &PullOptions) -> Result<ImageRecord, ImageError> {
        let reference: Reference = reference.parse().unwrap();
        self.store
            .pull(&reference, options, &|event| self.hear(event))
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
