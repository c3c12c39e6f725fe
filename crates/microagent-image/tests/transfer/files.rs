//! Images in files: what other tools read in them, and what they leave where something is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use microagent_image::{
    Digest, ExportFormat, ExportOptions, ExportTo, ImageError, ImageEvent, ImportOptions,
    PullOptions,
};
use testkit::registry::{
    Layout, Packing, Registry, TinyImage, damage, digest_of, noise, run_tool, skopeo, tar_of,
};

use super::{Bench, attribute, push_options, registry_options, skopeo_copy, unpacked, untarred};
use crate::nasty::nasty;
use crate::oracle::{assert_same, tool, umoci};

#[test]
fn whichever_way_an_image_leaves_it_is_what_umoci_unpacks() {
    let bench = Bench::new();
    let layers = nasty(300);
    let truth = umoci(&layers, &bench.path("truth"));
    let record = bench.image("nasty:1", &layers, Packing::Gzip);

    // The merged tree, as a tar: what GNU tar makes of it is the image, to the last attribute.
    let tar = bench.path("rootfs.tar");
    let exported = bench
        .export(&["nasty:1"], ExportFormat::RootfsTar, &tar)
        .unwrap();
    assert!(assert_same(&untarred(&tar, &bench.path("untarred")), &truth) > 330);
    assert_eq!(exported.bytes, fs::metadata(&tar).unwrap().len());
    assert!(
        exported.bytes < 10 << 20,
        "the sparse file is sparse: {exported:?}"
    );
    let bytes = fs::read(&tar).unwrap();
    assert_eq!(exported.sha256.unwrap().to_string(), digest_of(&bytes));
    // The same bytes each time, and into a stream.
    let mut stream = Vec::new();
    bench
        .store
        .export(
            &[record.digest.to_string()],
            &ExportOptions::new(ExportFormat::RootfsTar),
            ExportTo::Stream(&mut stream),
            &|_| {},
        )
        .unwrap();
    assert!(stream == bytes, "other bytes");
    // And imported it is that tree again.
    let again = bench
        .store
        .import(
            &tar,
            &ImportOptions::new().reference("again:1".parse().unwrap()),
            &|_| {},
        )
        .unwrap();
    let tar = bench.path("again.tar");
    bench
        .export(&["again:1"], ExportFormat::RootfsTar, &tar)
        .unwrap();
    assert!(fs::read(&tar).unwrap() == bytes, "other bytes");
    assert_eq!(again.layers.len(), 1);

    // An archive, by way of skopeo.
    let archive = bench.path("image.tar");
    bench
        .export(&["nasty:1"], ExportFormat::OciArchive, &archive)
        .unwrap();
    let layout = bench.path("by-archive");
    skopeo_copy(
        &format!("oci-archive:{}", archive.display()),
        &format!("oci:{}:x", layout.display()),
    );
    assert_same(
        &unpacked(&layout, "x", &bench.path("bundle-archive")),
        &truth,
    );

    // A registry, by way of skopeo.
    let registry = Registry::start().unwrap();
    let target = registry.reference("team/nasty:1").parse().unwrap();
    let pushed = bench
        .store
        .push("nasty:1", Some(&target), &push_options(), &|_| {})
        .unwrap();
    assert_eq!(pushed.digest, record.digest);
    assert_eq!(pushed.layers_sent, 3);
    let layout = bench.path("by-registry");
    skopeo_copy(
        &format!("docker://{target}"),
        &format!("oci:{}:x", layout.display()),
    );
    assert_same(
        &unpacked(&layout, "x", &bench.path("bundle-registry")),
        &truth,
    );
}

/// The other way: made by `umoci`, pushed by `skopeo`, pulled and exported by us.
#[test]
fn what_umoci_made_leaves_as_it_came() {
    let bench = Bench::new();
    let layout = bench.path("made");
    let image = format!("{}:made", layout.display());
    let umoci = |arguments: &[&str]| tool("umoci", "umoci", arguments);
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    for step in ["one", "two"] {
        let bundle = bench.path(step);
        umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
        let root = bundle.join("rootfs");
        let script = match step {
            "one" => {
                "mkdir -p usr/bin d/e gone opaque dev
                 printf ping >usr/bin/ping; chmod 4755 usr/bin/ping
                 printf a >d/e/a; ln d/e/a d/b; ln -s ../d/e usr/link
                 printf x >gone/x; printf old >opaque/old
                 mknod dev/null c 1 3; mknod dev/disk b 7 300; mkfifo dev/fifo
                 truncate -s 64M sparse; printf end >>sparse
                 chown 1000:2000 d/e/a
                 touch -d '2001-02-03 04:05:06.789' usr/bin/ping"
            }
            _ => {
                "rm -r gone d/b; rm -r opaque; mkdir opaque; printf new >opaque/new
                 rm usr/bin/ping; mkdir usr/bin/ping; printf in >usr/bin/ping/in"
            }
        };
        let mut shell = Command::new("sh");
        shell.current_dir(&root).args(["-euc", script]);
        run_tool("coreutils", &mut shell).unwrap();
        attribute(&root.join("d"), &format!("user.{step}"), b"hello\0");
        umoci(&["repack", "--image", &image, bundle.to_str().unwrap()]);
    }
    let truth = unpacked(&layout, "made", &bench.path("truth"));
    let registry = Registry::start().unwrap();
    registry.push(&layout, "made").unwrap();
    let options = PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(registry_options());
    let name = registry.reference("made");
    let record = bench
        .store
        .pull(&name.parse().unwrap(), &options, &|_| {})
        .unwrap();
    let tar = bench.path("rootfs.tar");
    bench
        .export(&[&name], ExportFormat::RootfsTar, &tar)
        .unwrap();
    assert_same(&untarred(&tar, &bench.path("untarred")), &truth);
    let back = bench.path("back");
    bench
        .export(&[&name], ExportFormat::OciLayout, &back)
        .unwrap();
    let canonical = record.reference.canonical();
    assert_same(&unpacked(&back, &canonical, &bench.path("bundle")), &truth);
}

#[test]
fn several_images_in_one_archive_and_back() {
    let bench = Bench::new();
    let shared = tar_of(&[("shared", 0o644, &noise(300_000, 1))]);
    let a = bench.image("a:1", std::slice::from_ref(&shared), Packing::Gzip);
    let b = bench.image(
        "r.example:5000/team/b:2",
        &[shared, tar_of(&[("own", 0o755, b"b")])],
        Packing::Gzip,
    );
    let names = ["a:1", "r.example:5000/team/b:2", "a:1"];
    for (format, file) in [
        (ExportFormat::OciArchive, "oci.tar"),
        (ExportFormat::DockerArchive, "docker.tar"),
        (ExportFormat::OciLayout, "layout"),
    ] {
        let path = bench.path(file);
        let exported = bench.export(&names, format, &path).unwrap();
        assert_eq!(exported.images.len(), 2);
        let loaded = bench.imported(&path);
        let digests: BTreeMap<String, Digest> = loaded
            .iter()
            .map(|record| (record.reference.to_string(), record.digest))
            .collect();
        let expected = [&a, &b].map(|record| (record.reference.to_string(), record.digest));
        assert_eq!(digests, BTreeMap::from(expected), "{format}");
        if format == ExportFormat::OciLayout {
            continue;
        }
        // The same bytes each time, whatever the time is.
        let first = fs::read(&path).unwrap();
        bench.export(&names, format, &path).unwrap();
        assert!(fs::read(&path).unwrap() == first, "{format}");
        let events = bench.events.lock().unwrap();
        assert!(
            matches!(
                events.iter().rfind(|event| matches!(event, ImageEvent::Exporting { .. })),
                Some(ImageEvent::Exporting { bytes, total: Some(total) })
                    if bytes == total && *bytes == first.len() as u64
            ),
            "{format}"
        );
    }
    // Skopeo takes the one it is asked for out of what `docker load` reads; its own digest of the
    // configuration is ours.
    for (name, record) in [("a:1", &a), ("r.example:5000/team/b:2", &b)] {
        let mut command = skopeo();
        command.args(["inspect", "--config", "--raw"]).arg(format!(
            "docker-archive:{}:{name}",
            bench.path("docker.tar").display()
        ));
        let config = run_tool("skopeo", &mut command).unwrap();
        assert_eq!(digest_of(&config), record.config.to_string());
    }
    // A stream is loaded as its file is.
    let stream = fs::read(bench.path("docker.tar")).unwrap();
    let other = microagent_image::ImageStore::open(bench.path("streamed")).unwrap();
    let options = ImportOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .build_disk(false);
    let loaded = other
        .load_stream(&mut &stream[..], &options, &|_| {})
        .unwrap();
    assert_eq!(loaded.len(), 2);
    let left = fs::read_dir(other.root().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "what was kept of the stream is gone");
}

#[test]
fn an_image_of_several_platforms_leaves_for_the_one_that_is_asked_for() {
    let bench = Bench::new();
    let mut layout = Layout::create(&bench.path("from")).unwrap();
    let of = |architecture: &str| {
        TinyImage::new(architecture).layer(
            tar_of(&[("for", 0o644, architecture.as_bytes())]),
            Packing::Plain,
        )
    };
    layout.add("x:1", &[of("amd64"), of("arm64")]).unwrap();
    for platform in ["linux/amd64", "linux/arm64"] {
        let options = ImportOptions::new()
            .reference("x:1".parse().unwrap())
            .platform(platform.parse().unwrap())
            .build_disk(false);
        bench
            .store
            .import(layout.path(), &options, &|_| {})
            .unwrap();
    }
    let export = |platform: &str| {
        let options =
            ExportOptions::new(ExportFormat::OciArchive).platform(platform.parse().unwrap());
        let path = bench.path("x.tar");
        bench
            .store
            .export(&["x:1".into()], &options, ExportTo::Path(&path), &|_| {})
    };
    let exported = export("linux/arm64").unwrap();
    assert_eq!(exported.images[0].platform.to_string(), "linux/arm64");
    let error = export("linux/s390x").unwrap_err();
    assert!(
        matches!(&error, ImageError::NoSuchPlatform { available, .. } if available.contains("arm64")),
        "{error}"
    );
}

#[test]
fn what_cannot_be_exported_says_why_and_leaves_nothing() {
    let bench = Bench::new();
    let record = bench.image(
        "a:1",
        &[tar_of(&[("f", 0o644, &noise(3 << 20, 2))])],
        Packing::Plain,
    );
    bench.image("b:1", &[tar_of(&[("g", 0o644, b"g")])], Packing::Plain);
    let out = bench.path("out");
    fs::create_dir(&out).unwrap();
    let refused = |names: &[&str], format, to: &str| {
        let error = bench.export(names, format, &out.join(to)).unwrap_err();
        let left = fs::read_dir(&out).unwrap().count();
        assert_eq!(left, 0, "after {error}");
        error.to_string()
    };
    let says = |text: String, what: &str| assert!(text.contains(what), "{text}");
    says(
        refused(&["nothing:1"], ExportFormat::OciArchive, "x"),
        "No image matches `nothing:1`",
    );
    says(
        refused(&["a:1", "b:1"], ExportFormat::RootfsTar, "x"),
        "export them one by one",
    );
    says(
        refused(&["a:1"], ExportFormat::OciArchive, "no/such/x"),
        "no/such",
    );
    says(
        refused(&["a:1"], ExportFormat::OciArchive, ""),
        "is a directory",
    );
    // What is there is replaced as a whole or not at all, and a layout is none that is there.
    let there = bench.path("there");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("mine"), b"mine").unwrap();
    let error = bench
        .export(&["a:1"], ExportFormat::OciLayout, &there)
        .unwrap_err();
    says(error.to_string(), "there is something already");
    let blob = bench
        .store
        .root()
        .join("blobs/sha256")
        .join(record.layers[0].digest.hex());
    damage(&blob).unwrap();
    let old = there.join("mine");
    let error = bench
        .export(&["a:1"], ExportFormat::DockerArchive, &old)
        .unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(&old).unwrap(), b"mine");
    says(
        refused(&["a:1"], ExportFormat::OciLayout, "x"),
        "does not hash to its name",
    );
    fs::remove_file(&blob).unwrap();
    says(
        refused(&["a:1"], ExportFormat::OciArchive, "x"),
        "is missing",
    );
    // A reader that goes away.
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = bench
        .store
        .export(
            &["b:1".into()],
            &ExportOptions::new(ExportFormat::OciArchive),
            ExportTo::Stream(&mut Gone),
            &|_| {},
        )
        .unwrap_err();
    says(error.to_string(), "write the output");
}

/// On a disk that is too small: a sentence about space, and no part of the file.
#[test]
fn a_full_disk_is_told() {
    let bench = Bench::new();
    bench.image(
        "big:1",
        &[tar_of(&[("f", 0o644, &noise(8 << 20, 3))])],
        Packing::Plain,
    );
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let at = small.to_str().unwrap();
    tool(
        "mount",
        "mount",
        &["-t", "tmpfs", "-o", "size=4m", "tmpfs", at],
    );
    let error = bench.export(&["big:1"], ExportFormat::OciArchive, &small.join("x"));
    let left = fs::read_dir(&small).unwrap().count();
    testkit::unmount(&small);
    assert!(
        matches!(error, Err(ImageError::NoSpace { .. })),
        "{error:?}"
    );
    assert_eq!(left, 0);
    // What is no file has no place that could be looked at.
    let error = bench.export(&["big:1"], ExportFormat::OciArchive, Path::new("/dev/full"));
    let said = error.unwrap_err().to_string();
    assert!(
        said.starts_with("Cannot write the output: No space left on device"),
        "{said}"
    );
}
