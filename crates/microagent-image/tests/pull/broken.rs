//! Content that is not what its digest says, and registries that go away.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use microagent_disk::JoinedFile;
use microagent_image::{ImageError, ImageEvent, Reference};
use testkit::registry::{self, Packing, Registry, TinyImage, Wire, damage, noise, tar_of};

use crate::{Bench, image, options};

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
