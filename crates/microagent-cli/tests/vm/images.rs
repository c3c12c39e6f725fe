//! Images through the command line, from a real registry.

use testkit::{
    Sandbox,
    registry::{Layout, Packing, Registry, Setup, TinyImage},
};

use crate::sandbox;

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// A layout in `dir` with the busybox image for this host under `tiny:1`, beside one for another. It says `word`.
fn layout(dir: &std::path::Path, word: &str) -> (Layout, String) {
    let busybox = std::fs::read(testkit::busybox_tar()).unwrap();
    let image = |architecture: &str| {
        TinyImage::new(architecture)
            .layer(busybox.clone(), Packing::Gzip)
            .config(serde_json::json!({ "Cmd": ["/bin/echo", word, architecture] }))
    };
    let mut layout = Layout::create(&dir.join(word)).unwrap();
    let (digest, _) = layout
        .add("tiny:1", &[image("s390x"), image(ARCHITECTURE)])
        .unwrap();
    (layout, digest)
}

#[test]
fn an_image_is_pulled_run_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, digest) = layout(dir.path(), "from");
    let registry = Registry::start().unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let reference = registry.reference("tiny:1");
    let sandbox = sandbox();

    // `run` pulls what is missing, and picks this host's platform of several.
    let first = sandbox.run([&reference]).run().success();
    assert_eq!(first.out(), format!("from {ARCHITECTURE}\n"));

    let by_digest = registry.reference(&format!("tiny@{digest}"));
    let pulled = sandbox
        .microagent(["--json", "images", "pull", &by_digest])
        .run()
        .success();
    assert!(pulled.parsed().to_string().contains(&digest), "{pulled}");

    let inspected = sandbox
        .microagent(["--json", "images", "inspect", &reference])
        .run()
        .success()
        .parsed();
    assert_eq!(inspected["platform"]["architecture"], ARCHITECTURE);
    assert_eq!(inspected["image"]["cmd"][2], ARCHITECTURE);

    // The tag moves, and the result says so.
    let (second, _) = crate::images::layout(dir.path(), "moved");
    registry.push(second.path(), "tiny:1").unwrap();
    let moved = sandbox
        .run(["--json", "--pull", "always", &reference])
        .run()
        .success()
        .parsed();
    let expected = serde_json::json!({
        "from": inspected["digest"],
        "to": moved["image"]["digest"],
    });
    assert_eq!(moved["tag_moved"], expected, "{moved}");
    assert_ne!(expected["from"], expected["to"], "{moved}");

    // What is here is run without the registry, and without any network.
    drop(registry);
    let run = ["--network", "isolated", "--pull", "never", &reference];
    let offline = sandbox.run(run).without_network().run().success();
    assert_eq!(offline.out(), format!("moved {ARCHITECTURE}\n"));
    let always = sandbox
        .run(["--pull", "always", &reference])
        .run()
        .exited(125);
    assert!(always.err().contains(&reference), "{always}");

    for name in [&reference, &by_digest] {
        drop(sandbox.microagent(["image", "rm", name]).run().success());
    }
    let list = sandbox.microagent(["images", "list"]).run().success();
    assert!(!list.out().contains("tiny"), "{list}");
    let gone = sandbox
        .microagent(["images", "inspect", &reference])
        .run()
        .exited(1);
    assert!(gone.err().contains(&reference), "{gone}");
    sandbox.leftovers().none(&[]);
}

#[test]
fn a_damaged_layer_is_named_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, _) = layout(dir.path(), "from");
    let registry = Registry::start().unwrap();
    registry.push(layout.path(), "tiny:1").unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let layer = largest_blob(layout.path());
    assert!(
        !index.to_string().contains(&layer),
        "the largest blob is a layer"
    );
    testkit::registry::damage(&registry.blob_file(&layer)).unwrap();

    let sandbox = Sandbox::empty(env!("CARGO_BIN_EXE_microagent"));
    let reference = registry.reference("tiny:1");
    let refused = sandbox
        .microagent(["images", "pull", &reference])
        .run()
        .exited(1);
    assert!(refused.err().contains(&layer), "{refused}");
    let list = sandbox
        .microagent(["--json", "images", "list"])
        .run()
        .success();
    assert_eq!(list.parsed()["images"], serde_json::json!([]), "{list}");
    assert!(!blob_is_stored(&sandbox, &layer));
}

#[test]
fn who_may_not_pull_is_told_so() {
    let setup = Setup {
        login: Some(("agent".into(), "secret".into())),
        ..Setup::default()
    };
    let registry = Registry::start_with(setup).unwrap();
    let sandbox = Sandbox::empty(env!("CARGO_BIN_EXE_microagent"));
    let refused = sandbox
        .microagent(["images", "pull", &registry.reference("tiny:1")])
        .run()
        .exited(1);
    assert!(
        refused.err().contains("user name and a password"),
        "{refused}"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let registry = Registry::start().unwrap();
    let sandbox = Sandbox::empty(env!("CARGO_BIN_EXE_microagent"));
    let reference = registry.reference("no-such:1");
    let missing = sandbox
        .microagent(["images", "pull", &reference])
        .run()
        .exited(1);
    assert!(missing.err().contains(&reference), "{missing}");
}

fn largest_blob(layout: &std::path::Path) -> String {
    let (_, name) = std::fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.metadata().unwrap().len(),
                entry.file_name().into_string().unwrap(),
            )
        })
        .max()
        .unwrap();
    format!("sha256:{name}")
}

fn blob_is_stored(sandbox: &Sandbox, digest: &str) -> bool {
    sandbox
        .state()
        .join("images/blobs")
        .join(digest.replace(':', "/"))
        .exists()
}

/// An archive of an image with one layer of a few files, different for each `seed`.
fn small_archive(dir: &std::path::Path, seed: u64) -> std::path::PathBuf {
    let tar = dir.join(format!("{seed}.tar"));
    let content = testkit::registry::noise(400_000, seed);
    std::fs::write(&tar, testkit::registry::tar_of(&[("a", 0o644, &content)])).unwrap();
    tar
}

#[test]
fn pruning_never_takes_what_a_workspace_needs() {
    // Workspaces are made, copied and removed while images are pruned. Nothing boots: what each workspace
    // boots from is read and compared with its manifest.
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let dir = tempfile::tempdir().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let act = |words: &[&str]| sandbox.microagent([]).words(words).run();
    let (pruned, kept) = std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut gone = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let asked = sandbox.microagent(["--json", "images", "prune", "--all", "--yes"]);
                let finished = asked.run().success().parsed();
                gone += finished["images"].as_array().unwrap().len();
            }
            gone
        });
        let makers: Vec<_> = (0..2)
            .map(|maker| {
                let (act, dir) = (&act, dir.path());
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..6 {
                        let tar = small_archive(dir, maker * 100 + round);
                        let (image, name) =
                            (format!("m{maker}:{round}"), format!("w{maker}-{round}"));
                        let tar = tar.to_str().unwrap();
                        // It may be pruned before a workspace needs it; then it is brought in again.
                        loop {
                            act(&["images", "import", "--name", &image, tar]).success();
                            let made = act(&["create", "--pull", "never", &name, &image]);
                            if made.code() == 0 {
                                break;
                            }
                            assert!(made.err().contains("is not in the local store"), "{made}");
                        }
                        if round % 3 == 1 {
                            let copy = format!("{name}-copy");
                            act(&["clone", &name, &copy]).success();
                            act(&["delete", &name]).success();
                            kept.push(copy);
                        } else if round % 3 == 2 {
                            act(&["delete", &name]).success();
                        } else {
                            kept.push(name);
                        }
                    }
                    kept
                })
            })
            .collect();
        let kept: Vec<_> = makers
            .into_iter()
            .map(|maker| maker.join().unwrap())
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (pruner.join().unwrap(), kept.concat())
    });
    assert!(
        pruned >= 3,
        "only {pruned} images were pruned: nothing was put to the test"
    );
    assert_eq!(kept.len(), 8);
    for name in &kept {
        let status = act(&["--json", "status", name]).success().parsed();
        assert_eq!(status["verification"]["ok"], true, "{name}: {status}");
    }
    let listed = act(&["--json", "images", "list", "--filter", "used=true"])
        .success()
        .parsed();
    assert_eq!(
        listed["images"].as_array().unwrap().len(),
        kept.len(),
        "{listed}"
    );
    // A workspace that cannot be read may need anything: nothing goes until it is gone.
    let manifest = sandbox
        .state()
        .join("workspaces")
        .join(&kept[0])
        .join("manifest.json");
    std::fs::write(manifest, "{}").unwrap();
    let refused = act(&["images", "prune", "--all", "--yes"]).exited(1);
    assert!(
        refused
            .err()
            .contains(&format!("microagent delete {}", kept[0])),
        "{refused}"
    );
    for name in &kept {
        act(&["delete", name]).success();
    }
    act(&["prune", "--all", "--yes"]).success();
    let usage = act(&["--json", "df"]).success().parsed();
    assert_eq!(
        (&usage["images"]["count"], &usage["workspaces"]["count"]),
        (&0.into(), &0.into())
    );
}
