//! Whether what is kept is still what it was.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::registry::{damage, digest_of};

use crate::{Bench, NOBODY};

#[test]
fn every_divergence_is_named() {
    let bench = Bench::new();
    let store = &bench.store;
    let (a, b) = (bench.image("a:1", 1), bench.image("b:1", 2));
    let all = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        store.verify(&names, &|_| {}).unwrap()
    };
    let sound = all(&[]);
    assert!(sound.ok && sound.images.len() == 2, "{sound:?}");
    // What is shared is read once.
    let blobs: u64 = fs::read_dir(store.root().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let disks: u64 = fs::read_dir(store.root().join("disks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let extension = path.extension().unwrap().to_str().unwrap();
            ["vmdk", "front", "piece", "index"].contains(&extension)
        })
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert_eq!(sound.bytes, blobs + disks);

    // A flipped byte in the shared layer is in both; one image alone may be asked for.
    damage(&bench.blob(a.layers[0].digest)).unwrap();
    let found = all(&[]);
    let named: Vec<_> = found
        .images
        .iter()
        .map(|image| {
            image
                .divergence
                .iter()
                .map(|it| it.artifact.as_str())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(
        (found.ok, named),
        (false, vec![vec!["layer 1"], vec!["layer 1"]])
    );
    let first = &found.images[0].divergence[0];
    assert_eq!(first.expected, a.layers[0].digest.to_string());
    assert!(first.actual.starts_with("sha256:") && first.path.exists());

    // So is one in what both have of it on their disks.
    let piece = bench.disks(&format!("{}.3.piece", a.layers[0].digest.hex()));
    let sound = fs::read(&piece).unwrap();
    fs::set_permissions(&piece, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    damage(&piece).unwrap();
    for image in &all(&[]).images {
        let of_disk = image.divergence.last().unwrap();
        assert_eq!((of_disk.artifact.as_str(), &of_disk.path), ("disk", &piece));
    }
    fs::write(&piece, sound).unwrap();

    // And one in what says where that is, or a note that says nothing.
    let index = piece.with_extension("index");
    fs::set_permissions(&index, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    for damaged in [&index, &piece.with_extension("json")] {
        let sound = fs::read(damaged).unwrap();
        damage(damaged).unwrap();
        for image in &all(&["a:1"]).images {
            let found = image.divergence.last().unwrap();
            assert_eq!((found.artifact.as_str(), &found.path), ("index", &index));
        }
        fs::write(damaged, sound).unwrap();
    }

    // Cut, gone, changed and unrecorded, each by its name.
    let layer = bench.blob(b.layers[1].digest);
    let file = fs::OpenOptions::new().write(true).open(&layer).unwrap();
    file.set_len(b.layers[1].size - 1).unwrap();
    fs::remove_file(bench.blob(b.config)).unwrap();
    let disk = b.disk.clone().unwrap();
    let mut permissions = fs::metadata(&disk).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&disk, permissions).unwrap();
    damage(&disk).unwrap();
    fs::write(a.disk.as_ref().unwrap().with_extension("json"), "{").unwrap();
    let of = |name: &str| -> Vec<(String, String)> {
        let found = all(&[name]);
        assert_eq!(found.images.len(), 1);
        let divergence = found.images[0].divergence.iter();
        divergence
            .map(|it| (it.artifact.clone(), it.actual.clone()))
            .collect()
    };
    let found = of("b:1");
    let artifacts: Vec<&str> = found
        .iter()
        .map(|(artifact, _)| artifact.as_str())
        .collect();
    assert_eq!(artifacts, ["config", "layer 1", "layer 2", "disk"]);
    assert_eq!(found[0].1, "missing");
    assert_eq!(found[2].1, format!("{} bytes", b.layers[1].size - 1));
    assert_eq!(
        of("a:1")[1],
        ("disk".to_owned(), "missing or damaged".to_owned())
    );
    damage(&bench.blob(a.digest)).unwrap();
    assert_eq!(of("a:1")[0].0, "manifest");
    assert!(store.verify(&["zzz:1".to_owned()], &|_| {}).is_err());
}

/// Changes what a note says of the boot its file was written in.
fn of_another_boot(note: &Path) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(note).unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    let text = text.replace(boot.trim(), "another");
    let (body, _) = text.rsplit_once(",\"seal\":").unwrap();
    let open = if body.contains("\"diff_id\"") {
        format!("{body},\"seal\":null}}")
    } else {
        format!("{body}}}")
    };
    let seal = digest_of(open.as_bytes());
    fs::write(note, format!("{body},\"seal\":\"{seal}\"}}")).unwrap();
}

/// What a pull wrote last may be lost with the host's power: it is looked at before it counts for anything.
#[test]
fn what_a_crash_of_the_host_took_is_made_again() {
    let bench = Bench::new();
    let store = &bench.store;
    let a = bench.image("a:1", 1);
    let disk = a.disk.clone().unwrap();
    let notes = || -> Vec<PathBuf> {
        let mut all = bench.files();
        all.retain(|path| path.extension().is_some_and(|it| it == "json"));
        all
    };
    let unsettled = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("\"boot\"");
    assert_eq!(notes().len(), 3, "of two layers and a disk");
    let again = |existed: bool| {
        let disk = store.base_disk(&a, &|event| {
            if let microagent_image::ImageEvent::DiskReady { existed: found, .. } = event {
                assert_eq!(found, existed);
            }
        });
        assert!(store.verify(&[], &|_| {}).unwrap().ok);
        disk.unwrap()
    };
    // Not held any longer: it is to go.
    let whole = again(true).digest;
    assert!(
        notes().iter().all(unsettled),
        "in this boot it is as it was written"
    );

    let piece = bench.disks(&format!("{}.3.piece", a.layers[0].digest.hex()));
    let index = piece.with_extension("index");
    for torn in [
        None,
        Some(piece),
        Some(index),
        Some(disk.with_extension("front")),
    ] {
        for note in notes() {
            if unsettled(&note) {
                of_another_boot(&note);
            }
        }
        if let Some(torn) = &torn {
            // The length came to the disk, the content did not.
            let length = fs::metadata(torn).unwrap().len();
            fs::set_permissions(torn, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            fs::write(torn, vec![0; length as usize]).unwrap();
        }
        assert_eq!(again(torn.is_none()).digest, whole);
        let left: Vec<PathBuf> = notes().into_iter().filter(unsettled).collect();
        if torn.is_none() {
            assert_eq!(left, Vec::<PathBuf>::new(), "it was seen after a boot");
            // As new, for what follows.
            store.remove("a:1", &NOBODY).unwrap();
            assert_eq!(bench.image("a:1", 1).digest, a.digest);
        }
    }
    let again = again(true);
    store.settle(&again).unwrap();
    assert!(!notes().iter().any(unsettled));
}

#[test]
fn an_image_does_not_vanish_with_its_name() {
    let bench = Bench::new();
    let (a, _) = (bench.image("a:1", 1), bench.image("b:1", 2));
    let path = bench.store.root().join("index.json");
    let whole = fs::read_to_string(&path).unwrap();
    for (good, bad) in [
        (
            "org.opencontainers.image.ref.name",
            "org.opencontainers.image.ref.mane",
        ),
        ("docker.io/library/a:1", "docker.io/library/A:1"),
        ("\"platform\"", "\"platfrom\""),
    ] {
        assert!(whole.contains(good), "{whole}");
        fs::write(&path, whole.replacen(good, bad, 1)).unwrap();
        let error = bench.store.list().unwrap_err().to_string();
        assert!(
            error.contains("entry 1") && error.contains(&a.digest.to_string()),
            "{error}"
        );
        assert!(bench.store.verify(&[], &|_| {}).is_err());
    }
    // What never was ours is no damage.
    let mut index: serde_json::Value = serde_json::from_str(&whole).unwrap();
    let mut other = index["manifests"][0].clone();
    other["annotations"] = serde_json::json!({"org.example": "x"});
    index["manifests"].as_array_mut().unwrap().push(other);
    fs::write(&path, index.to_string()).unwrap();
    assert_eq!(bench.store.list().unwrap().len(), 2);
}
