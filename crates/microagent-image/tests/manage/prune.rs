//! Taking away what nobody needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use microagent_image::{ImageError, PruneOptions, PruneReason};

use crate::{Bench, NOBODY, reference};

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
