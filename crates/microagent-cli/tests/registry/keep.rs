//! What is kept, as people and programs see it: names, what it takes, what is damaged, what may go.

use serde_json::{Value, json};
use testkit::{
    Sandbox,
    registry::{Layout, Packing, Registry, SigningKey, TinyImage, damage, noise, tar_of},
};

use crate::{ARCHITECTURE, layout, sandbox};

/// A sandbox with two images that share a layer, from a directory that is gone.
fn two_images() -> Sandbox {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let sandbox = sandbox();
    for (seed, name) in (1..).zip(["a:1", "b:1"]) {
        let image = TinyImage::new(ARCHITECTURE)
            .layer(
                tar_of(&[("base", 0o644, &noise(500_000, 9))]),
                Packing::Plain,
            )
            .layer(
                tar_of(&[("own", 0o644, &noise(90_000, seed))]),
                Packing::Gzip,
            )
            .history(json!([{"created_by": "ADD base /"}, {"created_by": "RUN\tmake\n it"}]));
        layout.add(name, &[image]).unwrap();
        let import = ["images", "import", "--select", name, "--name", name];
        let path = layout.path().to_str().unwrap();
        sandbox.microagent(import).arg(path).run().success();
    }
    sandbox
}

fn json(sandbox: &Sandbox, words: &[&str]) -> Value {
    let asked = sandbox.microagent([]).json().words(words).run().success();
    asked.parsed()
}

#[test]
fn names_and_what_images_are_made_of() {
    let sandbox = two_images();
    let run = |words: &[&str]| sandbox.microagent([]).words(words).run();
    let tagged = run(&["images", "tag", "a:1", "mine:2"]).success();
    assert!(tagged.out().starts_with("mine:2  sha256:"), "{tagged}");
    let moved = run(&["images", "tag", "b:1", "mine:2"]).success();
    assert!(moved.err().contains("mine:2 stood for "), "{moved}");
    let gone = run(&["images", "untag", "mine:2"]).success();
    assert_eq!(gone.out(), "mine:2\n");
    let kept = run(&["images", "untag", "b:1"]).success();
    let pinned = kept.out().lines().nth(1).unwrap().replace("kept as ", "");
    assert!(pinned.starts_with("b@sha256:"), "{kept}");
    run(&["images", "tag", &pinned, "b:1"]).success();
    let missing = run(&["images", "tag", "zzz:1", "y:1"]).exited(1);
    assert!(
        missing.err().contains("No image matches `zzz:1`"),
        "{missing}"
    );

    let history = run(&["images", "history", "a:1"]).success();
    let steps: Vec<String> = history.out().lines().map(str::to_owned).collect();
    assert!(
        steps[1].ends_with("RUN make it") && steps[2].ends_with("ADD base /"),
        "{history}"
    );
    let tree = run(&["images", "tree", "a:1"]).success();
    assert!(
        tree.out().contains("490.0 KiB  also in b:1") && tree.out().contains("└─ "),
        "{tree}"
    );
    let shown = run(&["images", "inspect", "a:1"]).success();
    for words in [
        "signature    not checked",
        "from         a file or this host",
        "by microagent",
    ] {
        assert!(shown.out().contains(words), "{words}: {shown}");
    }
    let shown = json(&sandbox, &["images", "inspect", "a:1"]);
    let from = &shown["provenance"];
    assert_eq!(from["resolved_digest"], shown["digest"]);
    assert_eq!(
        from["layers"][0]["digest"], from["layers"][0]["diff_id"],
        "stored plain"
    );
    assert_eq!(
        (&from["registry"], &from["record_version"]),
        (&Value::Null, &json!(2))
    );
}

#[test]
fn what_is_there_and_what_it_takes() {
    let sandbox = two_images();
    let list = json(&sandbox, &["images", "list"]);
    let rows = list["images"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let number = |field: &str| row[field].as_u64().unwrap();
        assert!(
            number("shared_bytes") >= 500_000 && number("unique_bytes") > 90_000,
            "{row}"
        );
        assert_eq!(
            number("shared_bytes") + number("unique_bytes"),
            number("stored_bytes")
        );
        assert!(number("apparent_bytes") > number("stored_bytes"), "{row}");
        assert_eq!(row["workspaces"], json!([]));
    }
    let run = |words: &[&str]| sandbox.microagent(["images", "list"]).words(words).run();
    let chosen = run(&[
        "--filter",
        "reference=a*",
        "--format",
        "{{reference}} {{platform.os}}",
    ]);
    assert_eq!(chosen.success().out(), "docker.io/library/a:1 linux\n");
    let named = run(&["--quiet", "--filter", "reference=a*"]).success();
    assert_eq!(named.out(), "a:1\n");
    let none = run(&["--filter", "used=true", "--format", "{{reference}}"]).success();
    assert_eq!(none.out(), "");
    let sorted = run(&["--sort", "pulled", "--filter", "signed=false"]).success();
    assert!(
        sorted.out().starts_with("IMAGE  DIGEST") && sorted.out().contains("UNIQUE"),
        "{sorted}"
    );
    let wrong = run(&["--filter", "colour=red"]).exited(2);
    assert!(
        wrong.err().contains("use reference, digest, platform"),
        "{wrong}"
    );

    let usage = json(&sandbox, &["df"]);
    let images = &usage["images"];
    assert_eq!(images["count"], 2);
    assert_eq!(images["shared"]["allocated_bytes"], rows[0]["shared_bytes"]);
    let reclaimable = images["reclaimable_bytes"].as_u64().unwrap();
    let pruned = json(&sandbox, &["images", "prune", "--all", "--dry-run"]);
    assert_eq!(pruned["bytes"], reclaimable);
    let table = sandbox.microagent(["df"]).run().success();
    for words in [
        "images",
        "kernels",
        "workspaces",
        "caches",
        "total",
        "images prune --all",
    ] {
        assert!(table.out().contains(words), "{words}: {table}");
    }
    // What goes is what was said, and all of it.
    let done = json(&sandbox, &["images", "prune", "--all", "--yes"]);
    assert_eq!(
        (&done["bytes"], done["images"].as_array().unwrap().len()),
        (&json!(reclaimable), 2)
    );
    let usage = json(&sandbox, &["df"]);
    assert_eq!(
        (
            &usage["images"]["count"],
            &usage["images"]["reclaimable_bytes"]
        ),
        (&json!(0), &json!(0))
    );
}

#[test]
fn what_is_damaged_is_named() {
    let sandbox = two_images();
    let sound = sandbox
        .microagent(["images", "verify", "--all"])
        .run()
        .success();
    assert!(sound.out().contains("a:1  ok\nb:1  ok\n"), "{sound}");
    let shown = json(&sandbox, &["images", "inspect", "b:1"]);
    let layer = shown["layers"][1].as_str().unwrap().to_owned();
    let blob = sandbox
        .state()
        .join("images/blobs/sha256")
        .join(&layer["sha256:".len()..]);
    damage(&blob).unwrap();
    let found = sandbox
        .microagent(["images", "verify", "--all"])
        .run()
        .exited(1);
    assert!(
        found
            .out()
            .contains("a:1  ok\nb:1  damaged\n  layer 2 is sha256:")
            && found.out().contains(&layer),
        "{found}"
    );
    sandbox
        .microagent(["images", "verify", "a:1"])
        .run()
        .success();
    let found = sandbox
        .microagent(["--json", "images", "verify", "b:1"])
        .run()
        .exited(1);
    let found = found.parsed();
    assert_eq!(
        (
            &found["ok"],
            &found["images"][0]["divergence"][0]["expected"]
        ),
        (&json!(false), &json!(layer))
    );
    sandbox.microagent(["images", "verify"]).run().exited(2);
}

#[test]
fn removing_images_is_asked_for() {
    let sandbox = two_images();
    let list = || {
        json(&sandbox, &["images", "list"])["images"]
            .as_array()
            .unwrap()
            .len()
    };
    let refused = sandbox
        .microagent(["images", "prune", "--all"])
        .run()
        .exited(1);
    assert!(refused.err().contains("--yes"), "{refused}");
    let mut terminal = sandbox.microagent(["prune", "--all"]).on_terminal(24, 80);
    terminal.wait_for("[y/N]");
    terminal.type_text("n\n");
    assert_eq!(terminal.finish(), Some(0));
    assert_eq!(list(), 2);
    // Without --all nothing that has a name goes, and nothing is asked.
    let nothing = sandbox.microagent(["prune"]).run().success();
    assert_eq!((nothing.out().as_str(), list()), ("0 B reclaimed\n", 2));
    let since = sandbox.microagent(["images", "prune", "--all", "--yes", "--until", "1h"]);
    assert_eq!(
        (since.run().success().out().as_str(), list()),
        ("0 B reclaimed\n", 2)
    );
    let mut terminal = sandbox
        .microagent(["prune", "--images"])
        .on_terminal(24, 80);
    terminal.wait_for("[y/N]");
    terminal.type_text("y\n");
    terminal.wait_for("reclaimed");
    assert_eq!(terminal.finish(), Some(0));
    assert_eq!(list(), 0);
    for (command, words) in [("gc", "microagent prune"), ("prune", "what `gc` does")] {
        let help = sandbox.microagent([command, "--help"]).run().success();
        assert!(help.out().contains(words), "{help}");
    }
}

#[test]
fn only_signed_images() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start().unwrap();
    let mut layout = layout(directory.path(), &["tiny:1"]);
    registry.push(layout.path(), "tiny:1").unwrap();
    let key = SigningKey::p256(directory.path(), "cosign").unwrap();
    let reference = registry.reference("tiny:1");
    let sandbox = sandbox();
    let public = key.public.to_str().unwrap();
    let pull = || {
        let words = ["images", "pull", "--verify-key", public, &reference];
        sandbox.microagent(words).run()
    };
    let unsigned = pull().exited(1);
    assert!(unsigned.err().contains("is not signed"), "{unsigned}");
    assert_eq!(json(&sandbox, &["images", "list"])["images"], json!([]));
    let digest = {
        let index = std::fs::read(layout.path().join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    };
    let name = key.sign_image(&mut layout, "tiny", &digest).unwrap();
    registry.push(layout.path(), &name).unwrap();
    let signed = pull().success();
    assert!(signed.err().contains(", signed"), "{signed}");
    let shown = sandbox
        .microagent(["images", "inspect", &reference])
        .run()
        .success();
    assert!(
        shown
            .out()
            .contains(&format!("signature    of {digest} checked with the key ")),
        "{shown}"
    );
    let wrong = sandbox.microagent(["images", "pull", "--verify-key", "/no/such.pub", &reference]);
    let wrong = wrong.run().exited(1);
    assert!(wrong.err().contains("/no/such.pub is no key"), "{wrong}");
}
