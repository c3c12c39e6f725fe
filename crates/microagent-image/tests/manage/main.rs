//! What is kept: names, sharing, verification, history, and taking away what nobody needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod prune;
mod verify;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_image::{
    Freshness, ImageError, ImageRecord, ImageStore, ImportOptions, PruneOptions, PullOptions,
    PullPolicy, Reference,
};
use serde_json::json;
use testkit::registry::{Layout, Packing, TinyImage, noise, tar_of};

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
