//! SIGKILL at any instant of a pull, an import, a disk build or a removal: the next operation works and cleans up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microagent_disk::DiskList;
use microagent_image::disk::ChunkSums;
use microagent_image::{
    Digest, ImageStore, ImportOptions, Needs, PruneOptions, PullOptions, Reference, RegistryOptions,
};
use testkit::registry::{
    Layout, Packing, Registry, TinyImage, Wire, digest_of, noise, pack, tar_of,
};

const WORK: &str = "CRASH_TEST_WORK";
const STORE: &str = "CRASH_TEST_STORE";

fn options() -> PullOptions {
    PullOptions::new()
        .platform("linux/amd64".parse().unwrap())
        .registry(RegistryOptions::default())
}

fn pull_and_build(store: &Path, reference: &str) {
    let store = ImageStore::open(store).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let record = store.pull(&reference, &options(), &|_| {}).unwrap();
    store.base_disk(&record, &|_| {}).unwrap();
}

fn import(store: &Path, file: &str) {
    let store = ImageStore::open(store).unwrap();
    let options = ImportOptions::new().reference("imported:1".parse().unwrap());
    store.import(Path::new(file), &options, &|_| {}).unwrap();
}

/// Whether a disk is its list, and its files what the list says.
fn assert_is_as_listed(path: &Path, digest: Digest) {
    let list = std::fs::read(path).unwrap();
    assert_eq!(digest_of(&list), digest.to_string());
    for file in DiskList::read(path).unwrap().files() {
        let file_path = path.with_file_name(&file.name);
        let sums = ChunkSums::of_file(&std::fs::File::open(file_path).unwrap()).unwrap();
        assert_eq!(sums.digest().hex(), file.digest);
    }
}

/// How often the image comes and goes in one process.
const ROUNDS: usize = 12;

fn prune(store: &Path, needs: &dyn Needs) -> usize {
    let mut options = PruneOptions::new().all(true);
    options.patience = Duration::from_secs(60);
    let store = ImageStore::open(store).unwrap();
    store.prune(&options, needs).unwrap().images.len()
}

/// Files named after the images that their makers need: what workspaces are to the store.
struct Files<'a>(&'a Path);

impl Needs for Files<'_> {
    fn images(&self) -> microagent_image::Result<BTreeSet<Digest>> {
        let names = std::fs::read_dir(self.0).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        Ok(names
            .filter_map(|name| format!("sha256:{}", name.split('-').next()?).parse().ok())
            .collect())
    }
}

/// Brings in the image of `file`, makes a "workspace" of it as the library does, looks whether what it
/// needs is there, and takes it away again; many times.
fn use_image(root: &Path, rest: &str) {
    let (needs, rest) = rest.split_once(' ').unwrap();
    let (id, file) = rest.split_once(' ').unwrap();
    let store = ImageStore::open(root).unwrap();
    for round in 0..ROUNDS {
        let hold = store.hold().unwrap();
        let name = format!("used:{id}").parse::<Reference>().unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let record = match store.resolve(&name, &platform).unwrap() {
            Some(record) => record,
            None => {
                let options = ImportOptions::new().reference(name);
                store.import(Path::new(file), &options, &|_| {}).unwrap()
            }
        };
        store.config(&record).unwrap();
        let disk = store.base_disk(&record, &|_| {}).unwrap();
        drop(hold);
        let workspace = Path::new(needs).join(format!("{}-{id}-{round}", record.digest.hex()));
        std::fs::write(&workspace, "").unwrap();
        drop(disk.guard);
        // From here on only the workspace keeps it.
        for _ in 0..20 {
            assert_is_as_listed(&disk.path, disk.digest);
        }
        std::fs::remove_file(&workspace).unwrap();
    }
}

/// Prunes until the file `enough` is in the store's directory; says how many images went.
fn prune_until_told(root: &Path, needs: &Path) {
    let mut gone = 0;
    while !root.with_file_name("enough").exists() {
        gone += prune(root, &Files(needs));
    }
    std::fs::write(root.with_file_name("gone"), gone.to_string()).unwrap();
}

fn start(store: &Path, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env(WORK, work)
        .env(STORE, store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test by itself: what the tests below start in a process of its own, to kill it.
#[test]
fn child() {
    let (Ok(work), Ok(store)) = (std::env::var(WORK), std::env::var(STORE)) else {
        return;
    };
    match work.split_once(' ') {
        Some(("pull", reference)) => pull_and_build(Path::new(&store), reference),
        Some(("import", file)) => import(Path::new(&store), file),
        Some(("import-and-prune", file)) => {
            // The image comes and goes until somebody ends it.
            for _ in 0..ROUNDS {
                import(Path::new(&store), file);
                prune(Path::new(&store), &BTreeSet::new());
            }
        }
        Some(("use", rest)) => use_image(Path::new(&store), rest),
        Some(("prune", needs)) => prune_until_told(Path::new(&store), Path::new(needs)),
        _ => panic!("what is `{work}`?"),
    }
}

/// Starts `work` on the store and kills it after `life`; true if it was still at it.
fn killed_after(store: &Path, work: &str, life: Duration) -> bool {
    let mut child = start(store, work);
    std::thread::sleep(life);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "{work}: {status}"
    );
    !status.success()
}

/// Whatever the store says it has is whole, and every rest is where the next operation sweeps.
fn assert_sound(root: &Path) {
    let store = ImageStore::open(root).unwrap();
    for record in store.list().unwrap() {
        store.config(&record).unwrap();
        for layer in &record.layers {
            let blob = std::fs::read(root.join("blobs/sha256").join(layer.digest.hex())).unwrap();
            assert_eq!(digest_of(&blob), layer.digest.to_string());
        }
        if let Some(path) = &record.disk {
            let disk = store.base_disk(&record, &|_| {}).unwrap();
            assert_is_as_listed(path, disk.digest);
        }
    }
    for entry in std::fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
        assert_eq!(digest_of(&std::fs::read(&path).unwrap()), name);
    }
}

/// Kills at growing ages until the work once ends first, then lets it run and looks for rests.
fn torture(work: &str, whole: &dyn Fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("images");
    let (mut life, mut kills) = (Duration::from_millis(2), 0);
    let deadline = Instant::now() + Duration::from_secs(90);
    while killed_after(&root, work, life) {
        kills += 1;
        assert_sound(&root);
        life = life * 5 / 4;
        assert!(Instant::now() < deadline, "never ends");
    }
    assert!(kills >= 3, "killed only {kills} times");
    whole(&root);
    assert_sound(&root);
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    let store = ImageStore::open(&root).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    let name = store.list().unwrap()[0].digest.to_string();
    store.remove(&name, &BTreeSet::new()).unwrap();
    for folder in ["blobs/sha256", "disks", "locks", "tmp"] {
        assert_eq!(
            std::fs::read_dir(root.join(folder)).unwrap().count(),
            0,
            "{folder}"
        );
    }
}

fn content() -> Vec<u8> {
    tar_of(&[
        ("a", 0o644, &noise(1 << 20, 1)),
        ("b/c", 0o644, &noise(100_000, 2)),
    ])
}

#[test]
fn killed_while_pulling() {
    let registry = Registry::start().unwrap();
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(16 << 20);
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let image = TinyImage::new("amd64")
        .layer(content(), Packing::Plain)
        .layer(tar_of(&[("d", 0o644, &noise(300_000, 3))]), Packing::Gzip);
    layout.add("big:1", &[image]).unwrap();
    registry.push(layout.path(), "big:1").unwrap();
    let reference = format!("127.0.0.1:{}/big:1", wire.port());
    torture(&format!("pull {reference}"), &|root| {
        pull_and_build(root, &reference);
    });
}

#[test]
fn killed_while_importing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rootfs.tar.gz");
    std::fs::write(&file, pack(&content(), Packing::Gzip)).unwrap();
    let file = file.to_str().unwrap();
    torture(&format!("import {file}"), &|root| import(root, file));
}

#[test]
fn killed_while_importing_a_layout() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let image = TinyImage::new("amd64")
        .layer(content(), Packing::Gzip)
        .layer(tar_of(&[("d", 0o644, &noise(8 << 20, 3))]), Packing::Plain);
    layout.add("imported:1", &[image]).unwrap();
    let path = layout.path().to_str().unwrap();
    torture(&format!("import {path}"), &|root| import(root, path));
}

#[test]
fn killed_while_pruning() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rootfs.tar.gz");
    let content = tar_of(&[("a", 0o644, &noise(100_000, 1))]);
    std::fs::write(&file, pack(&content, Packing::Gzip)).unwrap();
    let root = directory.path().join("images");
    let work = format!("import-and-prune {}", file.display());
    let mut kills = 0;
    for life in (5..).step_by(11).map(Duration::from_millis).take(24) {
        kills += usize::from(killed_after(&root, &work, life));
        assert_sound(&root);
    }
    assert!(kills >= 3, "killed only {kills} times");
    // What a kill left, one more removal takes.
    import(&root, file.to_str().unwrap());
    assert_eq!(prune(&root, &BTreeSet::new()), 1);
    for folder in ["blobs/sha256", "disks", "locks", "partial", "tmp"] {
        let left = std::fs::read_dir(root.join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
}

#[test]
fn pruned_while_others_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("images");
    let needs = directory.path().join("needs");
    std::fs::create_dir(&needs).unwrap();
    let pruner = start(&root, &format!("prune {}", needs.display()));
    let users = [1, 1, 2, 3].into_iter().zip(0..).map(|(seed, id)| {
        // Two of them want the same content under different names.
        let file = directory.path().join(format!("{seed}.tar"));
        std::fs::write(&file, tar_of(&[("a", 0o644, &noise(300_000, seed))])).unwrap();
        start(
            &root,
            &format!("use {} {id} {}", needs.display(), file.display()),
        )
    });
    let users: Vec<Child> = users.collect();
    let ended: Vec<_> = users
        .into_iter()
        .map(|mut user| user.wait().unwrap())
        .collect();
    std::fs::write(directory.path().join("enough"), "").unwrap();
    let pruned = { pruner }.wait().unwrap();
    assert!(
        pruned.success() && ended.iter().all(std::process::ExitStatus::success),
        "{ended:?}"
    );
    let gone: usize = std::fs::read_to_string(directory.path().join("gone"))
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        gone >= 4,
        "only {gone} images were pruned: nothing was put to the test"
    );
    assert_sound(&root);
}
