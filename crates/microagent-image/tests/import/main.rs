//! Imports of everything that is an image in a file, made by real tools, and of what only claims to be one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod refusals;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use microagent_disk::{DiskList, JoinedFile};
use microagent_image::disk::ChunkSums;
use microagent_image::{
    BaseDisk, ImageError, ImageEvent, ImageRecord, ImageStore, ImportOptions, Reference,
};
use serde_json::json;
use testkit::registry::{
    Layout, Packing, TinyImage, damage, digest_of, noise, pack, run_tool, skopeo, tar_of,
};

struct Bench {
    directory: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn import(&self, path: &Path, options: &ImportOptions) -> Result<ImageRecord, ImageError> {
        self.store.import(path, options, &|_| {})
    }

    /// What a refused import says; it must leave nothing.
    fn refused(&self, path: &Path, options: &ImportOptions) -> String {
        let error = self.import(path, options).unwrap_err();
        // Layers that were converted stay until somebody removes what nobody needs.
        for entry in fs::read_dir(self.store.root().join("disks")).unwrap() {
            let path = entry.unwrap().path();
            assert!(
                path.with_extension("piece").exists(),
                "{path:?} after {error}"
            );
        }
        for folder in ["blobs/sha256", "tmp"] {
            let count = fs::read_dir(self.store.root().join(folder))
                .unwrap()
                .count();
            assert_eq!(count, 0, "{folder} after {error}");
        }
        self.store.reclaim(&BTreeSet::new()).unwrap();
        for folder in ["blobs/sha256", "disks", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.store.root().join(folder))
                .unwrap()
                .collect();
            assert!(left.is_empty(), "{folder}: {left:?} after {error}");
        }
        assert_eq!(self.store.list().unwrap(), []);
        error.to_string()
    }

    fn layout(&self) -> Layout {
        Layout::create(&self.path("layout")).unwrap()
    }

    fn copy(&self, layout: &Layout, name: &str, to: &str) {
        let mut command = skopeo();
        command
            .arg("copy")
            .arg(format!("oci:{}:{name}", layout.path().display()))
            .arg(to);
        run_tool("skopeo", &mut command).unwrap();
    }
}

fn named(name: &str) -> ImportOptions {
    let mut options = ImportOptions::new().reference(name.parse().unwrap());
    options.platform = "linux/amd64".parse().unwrap();
    options
}

fn unnamed() -> ImportOptions {
    ImportOptions::new().platform("linux/amd64".parse().unwrap())
}

fn image() -> TinyImage {
    TinyImage::new("amd64")
        .layer(
            tar_of(&[
                ("etc/os-release", 0o644, b"ID=tiny\n"),
                ("gone", 0o644, b""),
            ]),
            Packing::Gzip,
        )
        .layer(
            tar_of(&[(".wh.gone", 0o644, b""), ("bin/hello", 0o755, b"hi\n")]),
            Packing::Gzip,
        )
        .config(json!({"Entrypoint": ["/bin/hello"], "WorkingDir": "/etc"}))
}

fn cat(record: &ImageRecord, path: &str) -> String {
    let mut command = Command::new("/sbin/debugfs");
    let list = record.disk.as_ref().unwrap();
    command
        .arg("-R")
        .arg(format!("cat {path}"))
        .arg(JoinedFile::open(list).unwrap().flat(list).unwrap());
    String::from_utf8(run_tool("e2fsprogs", &mut command).unwrap()).unwrap()
}

/// Whether a disk is its list, and its files what the list says.
fn assert_is_as_listed(disk: &BaseDisk) {
    let list = fs::read(&disk.path).unwrap();
    assert_eq!(digest_of(&list), disk.digest.to_string());
    for file in DiskList::read(&disk.path).unwrap().files() {
        let path = disk.path.with_file_name(&file.name);
        let sums = ChunkSums::of_file(&fs::File::open(path).unwrap()).unwrap();
        assert_eq!(sums.digest().hex(), file.digest);
    }
}

#[test]
fn a_root_file_system_plain_gzip_and_zstd() {
    let tar = tar_of(&[
        ("etc/os-release", 0o644, b"ID=rootfs\n"),
        ("bin/sh", 0o755, b"#!"),
    ]);
    for (packing, name) in [
        (Packing::Plain, "r.tar"),
        (Packing::Gzip, "r.tar.gz"),
        (Packing::Zstd, "wrong.name"),
    ] {
        let bench = Bench::new();
        let packed = pack(&tar, packing);
        let path = bench.write(name, &packed);
        let record = bench.import(&path, &named("rootfs:1")).unwrap();
        // The layer is kept as it was given.
        assert_eq!(record.layers[0].digest.to_string(), digest_of(&packed));
        assert_eq!(
            fs::read(
                bench
                    .store
                    .root()
                    .join("blobs/sha256")
                    .join(record.layers[0].digest.hex())
            )
            .unwrap(),
            packed
        );
        let config = bench.store.config(&record).unwrap();
        assert_eq!(config.cmd, ["/bin/sh"]);
        assert_eq!(config.diff_ids[0].to_string(), digest_of(&tar));
        assert_eq!(cat(&record, "/etc/os-release"), "ID=rootfs\n");
        // The same file is the same image, and without a disk too.
        let again = bench
            .import(&path, &named("other:2").build_disk(false))
            .unwrap();
        assert_eq!(again.digest, record.digest);
        assert!(
            bench
                .store
                .base_disk(&again, &|event| assert!(matches!(
                    event,
                    ImageEvent::DiskReady { existed: true, .. }
                )))
                .is_ok()
        );
        assert!(
            bench
                .import(&path, &unnamed())
                .unwrap_err()
                .to_string()
                .contains("give one")
        );
    }
}

#[test]
fn the_same_disk_whichever_way_it_is_built() {
    let tar = tar_of(&[("a/b/c", 0o644, &noise(300_000, 3))]);
    let (one, two) = (Bench::new(), Bench::new());
    let options = named("x:1");
    let at_once = one
        .import(&one.write("x.tgz", &pack(&tar, Packing::Gzip)), &options)
        .unwrap();
    let later = two
        .import(
            &two.write("x.tgz", &pack(&tar, Packing::Gzip)),
            &options.clone().build_disk(false),
        )
        .unwrap();
    assert_eq!(later.disk, None);
    assert_eq!(at_once.digest, later.digest);
    let disks = [(&one, &at_once), (&two, &later)]
        .map(|(bench, record)| bench.store.base_disk(record, &|_| {}).unwrap());
    assert_eq!(disks[0].digest, disks[1].digest);
    assert_is_as_listed(&disks[0]);
}

/// Copying and building side by side gives what one after the other gives, with layers that come twice and
/// layers that are stored already.
#[test]
fn layers_are_copied_and_built_side_by_side() {
    let (one, two) = (Bench::new(), Bench::new());
    let mut layout = one.layout();
    let shared = tar_of(&[("shared", 0o644, &noise(3 << 20, 1))]);
    let base = TinyImage::new("amd64").layer(shared.clone(), Packing::Gzip);
    let image = TinyImage::new("amd64")
        .layer(shared, Packing::Gzip)
        .layer(
            tar_of(&[("twice", 0o644, &noise(2 << 20, 2))]),
            Packing::Zstd,
        )
        .layer(tar_of(&[(".wh.twice", 0o644, b"")]), Packing::Plain)
        .layer(
            tar_of(&[("twice", 0o644, &noise(2 << 20, 2))]),
            Packing::Zstd,
        );
    layout.add("base:1", &[base]).unwrap();
    layout.add("image:1", &[image]).unwrap();
    let seen = |bench: &Bench, options: &ImportOptions| {
        let events = Mutex::new(Vec::new());
        let record = bench
            .store
            .import(layout.path(), options, &|event| {
                events.lock().unwrap().push(event);
            })
            .unwrap();
        (record, events.into_inner().unwrap())
    };
    let (at_once, events) = seen(&one, &named("image:1"));
    assert!(events.iter().any(|event| matches!(
        event,
        ImageEvent::LayerProgress { digest, bytes, total } if bytes == total && *digest == at_once.layers[0].digest
    )));
    assert!(
        events
            .iter()
            .any(|event| matches!(event, ImageEvent::DiskReady { existed: false, .. }))
    );
    let blobs = fs::read_dir(one.store.root().join("blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 3 + 2, "three layers and two documents");
    // There again, all is there.
    let (_, events) = seen(&one, &named("image:1"));
    assert!(
        events
            .iter()
            .all(|event| !matches!(event, ImageEvent::LayerProgress { .. }))
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, ImageEvent::DiskReady { existed: true, .. }))
    );
    // With the first layer stored, and the disk built in the end.
    two.import(layout.path(), &named("base:1")).unwrap();
    let (later, events) = seen(&two, &named("image:1").build_disk(false));
    assert!(events.iter().any(|event| matches!(
        event,
        ImageEvent::LayerExists { digest, .. } if *digest == later.layers[0].digest
    )));
    let disks = [(&one, &at_once), (&two, &later)]
        .map(|(bench, record)| bench.store.base_disk(record, &|_| {}).unwrap());
    assert_eq!(disks[0].digest, disks[1].digest);
    assert_is_as_listed(&disks[0]);
}

#[test]
fn layouts_and_archives_from_skopeo() {
    let bench = Bench::new();
    let mut layout = bench.layout();
    let (digest, _) = layout.add("debian:12", &[image()]).unwrap();
    let oci = bench.path("image.oci");
    bench.copy(
        &layout,
        "debian:12",
        &format!("oci-archive:{}:debian:12", oci.display()),
    );
    let docker = bench.path("image.docker");
    bench.copy(
        &layout,
        "debian:12",
        &format!("docker-archive:{}:debian:12", docker.display()),
    );
    // The compressed form of an archive.
    let packed = bench.write(
        "image.tar.gz",
        &pack(&fs::read(&docker).unwrap(), Packing::Gzip),
    );
    for (path, same) in [
        (layout.path(), true),
        (&oci, true),
        (&docker, false),
        (&packed, false),
    ] {
        let record = bench.import(path, &unnamed()).unwrap();
        assert_eq!(
            record.reference.canonical(),
            "docker.io/library/debian:12",
            "{}",
            path.display()
        );
        assert_eq!(
            record.digest.to_string() == digest,
            same,
            "{}",
            path.display()
        );
        let config = bench.store.config(&record).unwrap();
        assert_eq!(
            (config.entrypoint, config.working_dir.as_deref()),
            (vec!["/bin/hello".to_owned()], Some("/etc"))
        );
        assert_eq!(cat(&record, "/etc/os-release"), "ID=tiny\n");
        assert_eq!(cat(&record, "/gone"), "");
    }
    assert_eq!(bench.store.list().unwrap().len(), 1);
    let other = bench
        .import(&docker, &named("localhost:5000/mine:3"))
        .unwrap();
    assert_eq!(other.reference.to_string(), "localhost:5000/mine:3");
}

/// The form `docker save` wrote before it became an OCI layout: a folder per layer, links for repeated ones.
#[test]
fn old_docker_save() {
    let bench = Bench::new();
    let layer = tar_of(&[("old", 0o644, b"docker")]);
    let id = |n: u8| format!("{n:02x}").repeat(32);
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&layer), digest_of(&layer)]}});
    let config = serde_json::to_vec(&config).unwrap();
    let name = format!("{}.json", digest_of(&config).trim_start_matches("sha256:"));
    let manifest = json!([{"Config": name, "RepoTags": ["old:1"], "Layers": [format!("{}/layer.tar", id(1)), format!("{}/layer.tar", id(2))]}]);
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, content).unwrap();
    };
    add(&format!("{}/layer.tar", id(1)), &layer);
    add(&name, &config);
    add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    archive
        .append_link(
            &mut link,
            format!("{}/layer.tar", id(2)),
            format!("../{}/layer.tar", id(1)),
        )
        .unwrap();
    let path = bench.write("old.tar", &archive.into_inner().unwrap());
    let record = bench.import(&path, &unnamed()).unwrap();
    assert_eq!(
        (record.reference.to_string().as_str(), record.layers.len()),
        ("old:1", 2)
    );
    assert_eq!(cat(&record, "/old"), "docker");
}

/// Layers in `docker save`'s form have no digests of their own: what they unpack to is held against the
/// configuration, plain or compressed.
#[test]
fn archives_of_several_images_and_platforms() {
    let bench = Bench::new();
    let mut layout = bench.layout();
    let arm = TinyImage::new("arm64").layer(tar_of(&[("arm", 0o644, b"")]), Packing::Gzip);
    let (_, each) = layout.add("one:1", &[arm, image()]).unwrap();
    let other = image().layer(tar_of(&[("two", 0o644, b"")]), Packing::Gzip);
    let (two, _) = layout.add("two:1", &[other]).unwrap();
    let error = bench.refused(layout.path(), &unnamed());
    assert!(
        error.contains("several images") && error.contains("one:1, two:1"),
        "{error}"
    );
    let mut select = unnamed();
    select.select = Some("one:1".into());
    assert_eq!(
        bench
            .import(layout.path(), &select)
            .unwrap()
            .digest
            .to_string(),
        each[1]
    );
    let arm = select.clone().platform("arm64".parse().unwrap());
    assert_eq!(
        bench
            .import(layout.path(), &arm)
            .unwrap()
            .digest
            .to_string(),
        each[0]
    );
    assert_eq!(
        bench
            .import(layout.path(), &named("two:1"))
            .unwrap()
            .digest
            .to_string(),
        two
    );
    let none = select.clone().platform("riscv64".parse().unwrap());
    let error = bench.import(layout.path(), &none).unwrap_err().to_string();
    assert!(
        error.contains("it has only: linux/amd64, linux/arm64"),
        "{error}"
    );
    select.select = Some("three".into());
    assert!(
        bench
            .import(layout.path(), &select)
            .unwrap_err()
            .to_string()
            .contains("no image `three`")
    );
}
