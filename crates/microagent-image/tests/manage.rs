//! What is kept: names, sharing, verification, history, and taking away what nobody needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use microagent_image::{
    Freshness, ImageError, ImageRecord, ImageStore, ImportOptions, PruneOptions, PruneReason,
    PullOptions, PullPolicy, Reference,
};
use serde_json::json;
use testkit::registry::{Layout, Packing, TinyImage, damage, digest_of, noise, tar_of};

/// Nobody but names needs anything.
const NOBODY: BTreeSet<microagent_image::Digest> = BTreeSet::new();

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

    /// An image of a layer that all have and one of its own, with its disk.
    fn image(&self, name: &str, seed: u64) -> ImageRecord {
        let image = TinyImage::new("amd64")
            .layer(shared(), Packing::Plain)
            .layer(
                tar_of(&[("own", 0o644, &noise(200_000, seed))]),
                Packing::Gzip,
            )
            .history(json!([
                {"created": "2026-01-01T00:00:00Z", "created_by": "ADD rootfs.tar /"},
                {"created_by": "ENV A=1", "empty_layer": true},
                {"created_by": "RUN make", "comment": "own"},
            ]));
        self.import(name, image)
    }

    fn import(&self, name: &str, image: TinyImage) -> ImageRecord {
        let path = self.directory.path().join(name.replace(':', "-"));
        let mut layout = Layout::create(&path).unwrap();
        layout.add(name, &[image]).unwrap();
        let options = ImportOptions::new()
            .reference(reference(name))
            .platform("linux/amd64".parse().unwrap());
        self.store.import(&path, &options, &|_| {}).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let records = self.store.list().unwrap();
        records.iter().map(|it| it.reference.to_string()).collect()
    }

    fn blob(&self, digest: microagent_image::Digest) -> PathBuf {
        self.store.root().join("blobs/sha256").join(digest.hex())
    }

    fn disks(&self, name: &str) -> PathBuf {
        self.store.root().join("disks").join(name)
    }

    /// Every file of the store that holds content, with its bytes on the disk.
    fn files(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for folder in ["blobs/sha256", "disks", "partial", "tmp"] {
            for entry in fs::read_dir(self.store.root().join(folder)).unwrap() {
                all.push(entry.unwrap().path());
            }
        }
        all.sort();
        all
    }

    fn allocated(&self) -> u64 {
        self.files().iter().map(|path| allocated(path)).sum()
    }
}

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

fn shared() -> Vec<u8> {
    tar_of(&[("base", 0o644, &noise(300_000, 7))])
}

fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

#[test]
fn names_come_and_go_and_content_stays() {
    let bench = Bench::new();
    let store = &bench.store;
    let (a, b) = (bench.image("a:1", 1), bench.image("b:1", 2));

    let tagged = store.tag("a:1", &reference("r.example/mine:2")).unwrap();
    assert_eq!((tagged.record.digest, tagged.replaced), (a.digest, None));
    assert_eq!(tagged.record.tagged_from, Some(reference("a:1")));
    // By digest, over a name that stood for something else.
    let moved = store
        .tag(&b.digest.to_string()[..20], &reference("r.example/mine:2"))
        .unwrap();
    assert_eq!(moved.replaced, Some(a.digest));
    assert_eq!(bench.names(), ["a:1", "b:1", "r.example/mine:2"]);
    // The same again changes nothing, and a name given here is not looked for elsewhere.
    assert_eq!(
        store
            .tag("b:1", &reference("r.example/mine:2"))
            .unwrap()
            .replaced,
        None
    );
    let fresh = store.freshness(&moved.record, &PullOptions::new(), &|_| {});
    assert_eq!(fresh.unwrap(), Freshness::Pinned);
    let shown = store.inspect("r.example/mine:2").unwrap();
    assert_eq!(shown.provenance.reference, reference("b:1"));
    // Given back its first name it is as it came.
    store.tag("r.example/mine:2", &reference("b:1")).unwrap();
    assert_eq!(store.inspect("b:1").unwrap().record.tagged_from, None);

    let gone = store.untag(&reference("r.example/mine:2")).unwrap();
    assert_eq!((gone.digests, gone.kept_as), (vec![b.digest], vec![]));
    // The last name goes too; the image stays under its digest.
    let gone = store.untag(&reference("b:1")).unwrap();
    let pinned = format!("b@{}", b.digest);
    assert_eq!(gone.kept_as, [reference(&pinned)]);
    assert_eq!(bench.names(), ["a:1".to_owned(), pinned.clone()]);
    let pinned = store.inspect(&pinned).unwrap().record;
    assert_eq!(
        store.base_disk(&pinned, &|_| {}).unwrap().path,
        b.disk.clone().unwrap()
    );
    let pinned = pinned.reference.to_string();

    for (error, words) in [
        (
            store.tag("a:1", &reference(&pinned)).unwrap_err(),
            "computed",
        ),
        (store.untag(&reference(&pinned)).unwrap_err(), "images rm"),
        (
            store.untag(&reference("c:1")).unwrap_err(),
            "No image matches",
        ),
        (
            store.tag("c:1", &reference("d:1")).unwrap_err(),
            "No image matches",
        ),
    ] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(
        store
            .prune(&PruneOptions::new(), &NOBODY)
            .unwrap()
            .reclaimed
            .files,
        0
    );
}

#[test]
fn what_is_shared_is_counted_once_and_what_is_unique_comes_free() {
    let bench = Bench::new();
    let store = &bench.store;
    let (a, b) = (bench.image("a:1", 1), bench.image("b:1", 2));
    store.tag("a:1", &reference("again:1")).unwrap();

    let usage = store.usage().unwrap();
    assert_eq!(
        usage.images.len(),
        2,
        "two names of one image are one image"
    );
    let base = a.layers[0].digest;
    // The layer is stored plain, so its piece has the same name.
    let piece = ["piece", "index", "sums", "json"];
    let piece = piece.map(|what| allocated(&bench.disks(&format!("{}.3.{what}", base.hex()))));
    assert_eq!(
        usage.shared.allocated_bytes,
        allocated(&bench.blob(base)) + piece.iter().sum::<u64>()
    );
    assert_eq!(usage.total.allocated_bytes, bench.allocated());
    let (of_a, of_b) = (usage.images[&a.digest], usage.images[&b.digest]);
    assert_eq!(of_a.shared, usage.shared);
    assert_eq!(
        usage.unique.allocated_bytes,
        of_a.unique.allocated_bytes + of_b.unique.allocated_bytes
    );
    assert_eq!(
        of_a.total.allocated_bytes,
        of_a.shared.allocated_bytes + of_a.unique.allocated_bytes
    );
    // Disks are sparse: they look larger than they are.
    assert!(of_a.total.apparent_bytes > of_a.total.allocated_bytes);

    let tree = store.tree(&[]).unwrap();
    assert_eq!(tree.images.len(), 2);
    let first = &tree.images[0];
    assert_eq!(first.references, [reference("a:1"), reference("again:1")]);
    assert_eq!(first.layers[0].also_in, [reference("b:1")]);
    assert_eq!(first.layers[1].also_in, []);
    assert_eq!(
        first.layers[0].layer.diff_id,
        Some(base),
        "it is stored plain"
    );
    let only = store.tree(&["b:1".to_owned()]).unwrap();
    assert_eq!(only.images.len(), 1);
    assert_eq!(only.images[0].layers[0].also_in, [reference("a:1")]);

    let removed = store.remove(&b.digest.to_string(), &NOBODY).unwrap();
    assert_eq!(removed.reclaimed.bytes, of_b.unique.allocated_bytes);
    let usage = store.usage().unwrap();
    assert_eq!((usage.shared.allocated_bytes, usage.images.len()), (0, 1));
}

#[test]
fn a_history_has_the_layers_beside_the_steps() {
    let bench = Bench::new();
    let record = bench.image("a:1", 1);
    let history = bench.store.history("a:1").unwrap();
    let steps: Vec<_> = history
        .steps
        .iter()
        .map(|step| (step.created_by.as_deref(), step.layer))
        .collect();
    let layers: Vec<_> = record
        .layers
        .iter()
        .map(|layer| Some(layer.digest))
        .collect();
    assert_eq!(
        steps,
        [
            (Some("ADD rootfs.tar /"), layers[0]),
            (Some("ENV A=1"), None),
            (Some("RUN make"), layers[1]),
        ]
    );
    assert_eq!(history.steps[2].size_bytes, record.layers[1].size);

    // A history that says less, or more, than there is.
    let image = || TinyImage::new("amd64").layer(shared(), Packing::Plain);
    bench.import("silent:1", image());
    let silent = bench.store.history("silent:1").unwrap();
    assert_eq!((silent.steps.len(), silent.steps[0].layer), (1, layers[0]));
    bench.import(
        "boast:1",
        image().history(json!([{"created_by": "x"}, {"created_by": "y"}])),
    );
    let boast = bench.store.history("boast:1").unwrap();
    assert_eq!((boast.steps.len(), boast.steps[1].layer), (2, None));
}

#[test]
fn where_an_image_comes_from_is_recorded() {
    let bench = Bench::new();
    let record = bench.image("a:1", 1);
    let shown = bench.store.inspect("a:1").unwrap().provenance;
    assert_eq!(
        (shown.digest, shown.resolved_digest),
        (record.digest, record.digest)
    );
    assert_eq!(
        (shown.record_version, &shown.registry, &shown.signature),
        (2, &None, &None)
    );
    assert_eq!(
        shown.disk_format,
        Some(microagent_image::disk::FORMAT_VERSION)
    );
    assert!(shown.converter.unwrap().starts_with("microagent "));
    assert_eq!(shown.layers[1].size_bytes, record.layers[1].size);

    // A record of before is read as it is, and notes of others stay through a change.
    let index = bench.store.root().join("index.json");
    let mut layout: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let notes = layout["manifests"][0]["annotations"]
        .as_object_mut()
        .unwrap();
    notes.remove("microagent.record").unwrap();
    notes.insert("org.example.note".into(), "kept".into());
    fs::write(&index, serde_json::to_vec(&layout).unwrap()).unwrap();
    for note in fs::read_dir(bench.store.root().join("disks")).unwrap() {
        let path = note.unwrap().path();
        if path.with_extension("vmdk").exists() && path.extension().unwrap() == "json" {
            let mut old: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            for new in ["converter", "seal"] {
                old.as_object_mut().unwrap().remove(new).unwrap();
            }
            fs::write(&path, serde_json::to_vec(&old).unwrap()).unwrap();
        }
    }
    let shown = bench.store.inspect("a:1").unwrap().provenance;
    assert_eq!((shown.record_version, shown.converter), (1, None));
    bench.store.tag("a:1", &reference("b:1")).unwrap();
    let text = fs::read_to_string(&index).unwrap();
    assert_eq!(text.matches("org.example.note").count(), 2, "{text}");
    assert_eq!(text.matches("microagent.record").count(), 1, "{text}");
}

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
            ["vmdk", "front", "piece"].contains(&extension)
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

#[test]
fn pruning_takes_what_nobody_needs_and_nothing_else() {
    let bench = Bench::new();
    let store = &bench.store;
    let (a, b, c) = (
        bench.image("a:1", 1),
        bench.image("b:1", 2),
        bench.image("c:1", 3),
    );
    let before = bench.files();

    // Nothing is dangling.
    let nothing = store.prune(&PruneOptions::new(), &NOBODY).unwrap();
    assert_eq!((nothing.images.len(), nothing.reclaimed.files), (0, 0));
    assert_eq!(bench.files(), before);

    // A name that moves leaves content behind that no name stands for.
    store.tag("b:1", &reference("c:1")).unwrap();
    let told = store
        .prune(&PruneOptions::new().dry_run(true), &NOBODY)
        .unwrap();
    assert_eq!(bench.files(), before, "only told");
    let needed = BTreeSet::from([c.digest]);
    let kept = store.prune(&PruneOptions::new(), &needed).unwrap();
    assert_eq!((kept.reclaimed.files, bench.files()), (0, before));
    let done = store.prune(&PruneOptions::new(), &NOBODY).unwrap();
    assert!(!c.disk.as_ref().unwrap().exists());
    assert_eq!(
        told.reclaimed.files, 5,
        "manifest, configuration, layer, its piece and the disk"
    );
    assert_eq!(
        (told.reclaimed.files, told.reclaimed.bytes),
        (done.reclaimed.files, done.reclaimed.bytes)
    );

    // All: but what is needed, what is used at this moment, and what was used since.
    let all = PruneOptions::new().all(true);
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let recent = store
        .prune(&all.clone().until(Some(hour_ago)), &NOBODY)
        .unwrap();
    assert_eq!((recent.images, recent.reclaimed.files), (vec![], 0));
    let held = store.base_disk(&a, &|_| {}).unwrap();
    let pruned = store.prune(&all, &BTreeSet::from([b.digest])).unwrap();
    assert_eq!((pruned.images, pruned.reclaimed.files), (vec![], 0));
    drop(held);
    let later = SystemTime::now() + Duration::from_secs(3600);
    let pruned = store
        .prune(&all.clone().until(Some(later)), &BTreeSet::from([b.digest]))
        .unwrap();
    assert_eq!(pruned.images.len(), 1);
    assert_eq!(
        (pruned.images[0].digest, pruned.images[0].why),
        (a.digest, PruneReason::Unused)
    );
    assert_eq!(bench.names(), ["b:1", "c:1"]);
    assert!(store.verify(&[], &|_| {}).unwrap().ok);

    // A record of what is gone is of no use; the disk of a workspace is, whatever became of its record.
    fs::remove_file(bench.blob(b.digest)).unwrap();
    let needed = BTreeSet::from([b.digest]);
    let pruned = store.prune(&PruneOptions::new(), &needed).unwrap();
    assert!(
        pruned
            .images
            .iter()
            .all(|image| image.why == PruneReason::Damaged)
    );
    assert_eq!((pruned.images.len(), bench.names().len()), (2, 0));
    assert!(b.disk.as_ref().unwrap().exists());
    store.prune(&PruneOptions::new(), &NOBODY).unwrap();
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
}

#[test]
fn pruning_waits_for_those_who_add_and_gives_up_in_the_end() {
    let bench = Bench::new();
    bench.image("a:1", 1);
    let mut options = PruneOptions::new().all(true);
    options.patience = Duration::from_millis(50);
    let hold = bench.store.hold().unwrap();
    let error = bench.store.prune(&options, &NOBODY).unwrap_err();
    assert!(matches!(error, ImageError::StoreBusy { .. }), "{error}");
    assert!(error.to_string().contains("Try again"), "{error}");
    assert_eq!(bench.names(), ["a:1"]);
    drop(hold);
    assert_eq!(
        bench.store.prune(&options, &NOBODY).unwrap().images.len(),
        1
    );
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
}

#[test]
fn while_it_cannot_be_told_what_is_needed_nothing_goes() {
    struct Unknown;
    impl microagent_image::Needs for Unknown {
        fn images(&self) -> microagent_image::Result<BTreeSet<microagent_image::Digest>> {
            Err(ImageError::NeedsUnknown {
                reason: "the workspace x is damaged".into(),
            })
        }
    }
    let bench = Bench::new();
    bench.image("a:1", 1);
    let before = bench.files();
    assert!(
        bench
            .store
            .prune(&PruneOptions::new().all(true), &Unknown)
            .is_err()
    );
    assert!(bench.store.remove("a:1", &Unknown).is_err());
    assert_eq!(
        (bench.files(), bench.names()),
        (before, vec!["a:1".to_owned()])
    );
}

#[test]
fn what_is_here_by_digest_needs_no_network() {
    // A registry that accepts and says nothing: any connection would be counted.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    dead.set_nonblocking(true).unwrap();
    let host = dead.local_addr().unwrap();
    let bench = Bench::new();
    let record = bench.image("a:1", 1);
    let tagged = reference(&format!("{host}/a:1"));
    bench.store.tag("a:1", &tagged).unwrap();
    let mut options = PullOptions::new().platform("linux/amd64".parse().unwrap());
    options.registry.attempts = 1;
    options.registry.connect_timeout = Duration::from_secs(2);
    let pinned = reference(&format!("{host}/a@{}", record.digest));
    let both = reference(&format!("{host}/other:7@{}", record.digest));
    for (name, policy) in [
        (&tagged, PullPolicy::Missing),
        (&tagged, PullPolicy::Never),
        (&pinned, PullPolicy::Never),
        (&pinned, PullPolicy::Missing),
        (&pinned, PullPolicy::Always),
        (&both, PullPolicy::Always),
    ] {
        let found = bench.store.ensure(name, policy, &options, &|_| {}).unwrap();
        assert_eq!(found.digest, record.digest, "{name}");
        bench.store.base_disk(&found, &|_| {}).unwrap();
    }
    let absent = reference(&format!("{host}/a@sha256:{}", "0".repeat(64)));
    let error = bench
        .store
        .ensure(&absent, PullPolicy::Never, &options, &|_| {})
        .unwrap_err();
    assert!(matches!(error, ImageError::NotLocal { .. }), "{error}");
    assert_eq!(
        dead.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    // The witness works: with a tag, `always` does ask.
    dead.set_nonblocking(false).unwrap();
    let asked = std::thread::spawn(move || dead.accept().map(drop));
    let error = bench
        .store
        .ensure(&tagged, PullPolicy::Always, &options, &|_| {})
        .unwrap_err();
    assert!(matches!(error, ImageError::Connection { .. }), "{error}");
    asked.join().unwrap().unwrap();
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
fn a_disk_of_the_format_before_stays_as_long_as_a_workspace_needs_it() {
    let bench = Bench::new();
    let a = bench.image("a:1", 1);
    let folder = bench.disks("");
    let before = microagent_image::disk::FORMAT_VERSION - 1;
    let renamed = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let new = format!(".{}.", before + 1);
        folder.join(name.replace(&new, &format!(".{before}.")))
    };
    let mut old = BTreeSet::new();
    for path in bench
        .files()
        .into_iter()
        .filter(|it| it.starts_with(&folder))
    {
        fs::rename(&path, renamed(&path)).unwrap();
        old.insert(renamed(&path));
    }
    // The list names them.
    let list = renamed(a.disk.as_ref().unwrap());
    let text = fs::read_to_string(&list).unwrap();
    fs::remove_file(&list).unwrap();
    fs::write(
        &list,
        text.replace(&format!(".{}.", before + 1), &format!(".{before}.")),
    )
    .unwrap();
    // One of the first format is one file, and longer than any list.
    for (name, bytes) in [
        ("ext4", vec![0; 3 << 20]),
        ("sums", vec![b'x']),
        ("json", vec![b'x']),
    ] {
        let path = folder.join(format!("{}.1.{name}", a.digest.hex()));
        fs::write(&path, bytes).unwrap();
        old.insert(path);
    }
    let there = || -> BTreeSet<PathBuf> {
        let files = bench.files().into_iter();
        files.filter(|path| old.contains(path)).collect()
    };

    // For the image there is none, and it is made again; a workspace's stays beside it.
    assert_eq!(bench.store.list().unwrap()[0].disk, None);
    let made = bench.store.base_disk(&a, &|_| {}).unwrap();
    assert_eq!(Some(&made.path), a.disk.as_ref());
    drop(made);
    let needed = BTreeSet::from([a.digest]);
    bench.store.prune(&PruneOptions::new(), &needed).unwrap();
    assert_eq!(there(), old);
    bench.store.usage().unwrap();
    bench.store.prune(&PruneOptions::new(), &NOBODY).unwrap();
    assert_eq!(there(), BTreeSet::new());
    assert!(a.disk.as_ref().unwrap().exists());
    assert!(bench.store.verify(&[], &|_| {}).unwrap().ok);
}
