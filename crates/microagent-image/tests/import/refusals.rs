//! What only claims to be an image, or lies about itself, and what it leaves.

use crate::*;

#[test]
fn saved_layers_are_held_against_the_configuration() {
    let layer = tar_of(&[("f", 0o644, &noise(100_000, 4))]);
    let saved = |packing: Packing, diff_id: &str| {
        let config = json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        tar_of(&[
            (
                "manifest.json",
                0o644,
                br#"[{"Config":"config.json","RepoTags":["saved:1"],"Layers":["layer.tar"]}]"#,
            ),
            ("layer.tar", 0o644, &pack(&layer, packing)),
            ("config.json", 0o644, &serde_json::to_vec(&config).unwrap()),
        ])
    };
    let bench = Bench::new();
    let lie = digest_of(b"something else");
    for (packing, reason) in [
        (Packing::Plain, "does not match"),
        (Packing::Gzip, "layer 1 of 1"),
    ] {
        let path = bench.write("lie.tar", &saved(packing, &lie));
        let error = bench.refused(&path, &unnamed());
        assert!(error.contains(reason), "{error}");
    }
    for packing in [Packing::Plain, Packing::Gzip] {
        let bench = Bench::new();
        let path = bench.write("good.tar", &saved(packing, &digest_of(&layer)));
        let record = bench.import(&path, &unnamed()).unwrap();
        let stored = bench.store.root().join("blobs/sha256");
        assert_eq!(
            fs::read(stored.join(record.layers[0].digest.hex())).unwrap(),
            pack(&layer, packing)
        );
        assert!(record.disk.is_some());
    }
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let options = named("evil:1");
    let good = tar_of(&[("file", 0o644, &noise(50_000, 5))]);

    for (content, reason) in [
        (Vec::new(), "empty"),
        (b"hello, this is no archive at all".to_vec(), "tar"),
        (noise(10_000, 1), "tar"),
        (pack(&good, Packing::Gzip)[..30_000].to_vec(), ""),
        (pack(&good, Packing::Zstd)[..30_000].to_vec(), ""),
        (good[..20_000].to_vec(), "truncated"),
        (
            tar_of(&[("oci-layout", 0o644, b"{}"), ("index.json", 0o644, b"{}")]),
            "marker",
        ),
        (
            tar_of(&[
                ("oci-layout", 0o644, br#"{"imageLayoutVersion":"9.0.0"}"#),
                ("index.json", 0o644, b"{}"),
            ]),
            "version `9.0.0`",
        ),
        (tar_of(&[("manifest.json", 0o644, b"[]")]), "no image"),
        (
            tar_of(&[("manifest.json", 0o644, &vec![b' '; 5 << 20])]),
            "larger than",
        ),
        (
            tar_of(&[(
                "manifest.json",
                0o644,
                br#"[{"Config":"../../../../etc/passwd","Layers":[]}]"#,
            )]),
            "is missing",
        ),
        (tar_of(&[("index.json", 0o644, b"{}")]), "neither"),
    ] {
        let path = bench.write("evil", &content);
        let error = bench.refused(&path, &options);
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.len() < 1000, "{error}");
    }

    // A member that claims more than there is.
    let mut lying = tar_of(&[("manifest.json", 0o644, b"[]")]);
    lying[124..136].copy_from_slice(b"77777777777\0");
    let sum: u64 = lying[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    lying[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = bench.refused(&bench.write("lying", &lying), &options);
    assert!(error.contains("more than the archive has"), "{error}");

    // A root file system that climbs out.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    archive.append(&header, std::io::empty()).unwrap();
    let error = bench.refused(
        &bench.write("climb.tar", &archive.into_inner().unwrap()),
        &options,
    );
    assert!(error.contains("climbs"), "{error}");
}

#[test]
fn damaged_layouts_are_refused_and_leave_nothing() {
    for (which, reason) in [
        ("layer", "layer 1 of 2"),
        ("config", "the configuration"),
        ("manifest", "the manifest"),
    ] {
        let bench = Bench::new();
        let mut layout = bench.layout();
        let (digest, _) = layout.add("x:1", &[image()]).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.blob_file(&digest)).unwrap()).unwrap();
        let victim = match which {
            "layer" => manifest["layers"][0]["digest"].as_str().unwrap(),
            "config" => manifest["config"]["digest"].as_str().unwrap(),
            _ => &digest,
        };
        damage(&layout.blob_file(victim)).unwrap();
        let error = bench.refused(layout.path(), &named("x:1"));
        assert!(
            error.contains(reason) && error.contains("does not match"),
            "{which}: {error}"
        );
        fs::remove_file(layout.blob_file(victim)).unwrap();
        let error = bench.refused(layout.path(), &named("x:1"));
        assert!(
            error.contains("is missing") && error.contains(victim),
            "{which}: {error}"
        );
    }
}

#[test]
fn an_entry_that_cannot_be_read_is_no_fault_of_the_others() {
    let bench = Bench::new();
    let mut layout = bench.layout();
    layout.add("x:1", &[image()]).unwrap();
    let path = layout.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let entries = index["manifests"].as_array_mut().unwrap();
    entries.push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha512:{}", "0".repeat(128)),
        "size": 7,
        "platform": {"os": "linux", "architecture": "arm64"},
    }));
    fs::write(&path, index.to_string()).unwrap();
    let arm64 = named("x:1").platform("linux/arm64".parse().unwrap());
    let error = bench.refused(layout.path(), &arm64);
    assert!(
        error.contains("linux/arm64") && error.contains("only sha256"),
        "{error}"
    );
    index["manifests"].as_array_mut().unwrap().remove(0);
    let alone = bench.path("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(layout.path().join("oci-layout"), alone.join("oci-layout")).unwrap();
    fs::write(alone.join("index.json"), index.to_string()).unwrap();
    let error = bench.refused(&alone, &arm64);
    assert!(error.contains("only sha256"), "{error}");
    bench.import(layout.path(), &named("x:1")).unwrap();
}

#[test]
fn a_layer_that_is_not_what_the_config_promises_makes_no_disk() {
    let bench = Bench::new();
    let layout = bench.layout();
    let lie = digest_of(b"something else");
    let tar = tar_of(&[("f", 0o644, b"f")]);
    let layer = layout
        .blob(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &pack(&tar, Packing::Gzip),
        )
        .unwrap();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [lie]}});
    let config = layout
        .blob(
            "application/vnd.oci.image.config.v1+json",
            &serde_json::to_vec(&config).unwrap(),
        )
        .unwrap();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = layout
        .blob(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::to_vec(&manifest).unwrap(),
        )
        .unwrap();
    fs::write(
        layout.path().join("index.json"),
        json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )
    .unwrap();
    let error = bench.refused(layout.path(), &named("lie:1"));
    assert!(error.contains("layer 1 of 1"), "{error}");
    // Who wants no disk finds out when one is built.
    let record = bench
        .import(layout.path(), &named("lie:1").build_disk(false))
        .unwrap();
    let error = bench.store.base_disk(&record, &|_| {}).unwrap_err();
    assert!(matches!(error, ImageError::Disk { .. }), "{error:?}");
}

/// What a crash leaves, the next operation removes, and what is under way it leaves alone.
#[test]
fn rests_of_a_crash_are_swept() {
    let bench = Bench::new();
    let root = bench.store.root().to_owned();
    fs::create_dir(root.join("tmp/op-crashed")).unwrap();
    fs::write(root.join("tmp/op-crashed/layer"), b"half").unwrap();
    fs::write(root.join("disks/.tmpcrashed"), b"half").unwrap();
    fs::write(root.join(".tmpcrashed"), b"half").unwrap();
    let tar = tar_of(&[("f", 0o644, b"f")]);
    let nested = Mutex::new(false);
    let path = bench.write("x.tar", &tar);
    let record = bench
        .store
        .import(&path, &named("a:1"), &|event| {
            if matches!(event, ImageEvent::Resolved { .. })
                && !std::mem::replace(&mut *nested.lock().unwrap(), true)
            {
                // Another operation begins and must not sweep this one's files away.
                let other = bench.write("y.tar", &tar_of(&[("g", 0o644, b"g")]));
                bench.import(&other, &named("b:1")).unwrap();
            }
        })
        .unwrap();
    assert!(record.disk.is_some());
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert!(!root.join("disks/.tmpcrashed").exists() && !root.join(".tmpcrashed").exists());
    let names: Vec<Reference> = bench
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|record| record.reference)
        .collect();
    assert_eq!(names, ["a:1".parse().unwrap(), "b:1".parse().unwrap()]);
}
