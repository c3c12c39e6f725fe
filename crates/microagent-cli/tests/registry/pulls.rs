//! Pulls as people and programs see them: several at once, interrupted, offline, outdated.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testkit::{
    eventually,
    registry::{Layout, Packing, Registry, Setup, TinyImage, Wire, noise, tar_of},
};

use crate::{ARCHITECTURE, registry, sandbox, write};

const BIG: usize = 6 << 20;

/// Pushes an image of one shared layer and one of its own.
fn push(registry: &Registry, name: &str, seed: u64, size: usize) {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(&directory.path().join("layout")).unwrap();
    let image = TinyImage::new(ARCHITECTURE)
        .layer(
            tar_of(&[("shared", 0o644, &noise(300_000, 99))]),
            Packing::Gzip,
        )
        .layer(tar_of(&[("own", 0o644, &noise(size, seed))]), Packing::Gzip);
    layout.add(name, &[image]).unwrap();
    registry.push(layout.path(), name).unwrap();
}

/// The objects on the lines of `text`.
fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn several_at_once() {
    let registry = Registry::start().unwrap();
    let names = ["a:1", "b:1", "c:1"];
    for (seed, name) in (0..).zip(names) {
        push(&registry, name, seed, 200_000);
    }
    let [a, b, c] = names.map(|name| registry.reference(name));
    let sandbox = sandbox();
    let all = sandbox
        .microagent(["images", "pull", &a, &b, &c])
        .run()
        .success();
    let out = all.out();
    let printed: Vec<&str> = out
        .lines()
        .map(|line| line.split("  ").next().unwrap())
        .collect();
    assert_eq!(printed, [a.as_str(), &b, &c], "{all}");
    // One tidy line each where nobody watches.
    let err = all.err();
    assert_eq!(err.lines().count(), 3, "{all}");
    assert!(
        err.lines()
            .all(|line| line.contains(": 2 layers, ") && line.contains(" in ")),
        "{all}"
    );
    assert_eq!(err.matches("1 already here").count(), 2, "{all}");

    // One that fails keeps no other, and its error is told.
    let missing = registry.reference("d:1");
    let mixed = sandbox
        .microagent(["--json", "images", "pull", &a, &missing, &c])
        .run()
        .exited(1);
    let images = mixed.parsed();
    assert_eq!(images["images"].as_array().unwrap().len(), 2, "{mixed}");
    let told = lines(&mixed.err());
    assert!(
        told.iter().any(|line| line["kind"] == "not_found"),
        "{mixed}"
    );
    let here = |image: &str| {
        told.iter()
            .filter(|line| line["event"] == "layer_exists" && line["image"] == image)
            .count()
    };
    assert_eq!((here(&a), here(&c), here(&missing)), (2, 2, 0), "{mixed}");

    let quiet = sandbox
        .microagent(["--quiet", "images", "pull", &a])
        .run()
        .success();
    assert_eq!(quiet.err(), "");
}

#[test]
fn progress_on_a_terminal() {
    let registry = Registry::start().unwrap();
    push(&registry, "a:1", 1, 200_000);
    push(&registry, "b:1", 2, BIG);
    let wire = Wire::to(registry.port()).unwrap();
    let reference = |name: &str| format!("127.0.0.1:{}/{name}", wire.port());
    let sandbox = sandbox();
    let _first = sandbox
        .microagent(["images", "pull", &reference("a:1")])
        .run()
        .success();
    wire.slow(4 << 20);
    let mut terminal = sandbox
        .microagent(["images", "pull", &reference("b:1")])
        .on_terminal(30, 120);
    terminal.wait_for("already here");
    terminal.wait_for("MiB/s");
    let screen = terminal.wait_for(" left");
    assert!(screen.contains(" of 6.3 MiB"), "{screen}");
    assert_eq!(terminal.finish(), Some(0));
    let screen = terminal.screen();
    // What stays is the summary and the result.
    let last = screen.rsplit("\x1b[2K").next().unwrap();
    assert!(
        last.contains("2 layers, 6.3 MiB in ") && last.contains("1 already here"),
        "{screen:?}"
    );
    assert!(terminal.is_restored());
}

#[test]
fn ctrl_c_and_on_from_there() {
    let registry = Registry::start().unwrap();
    push(&registry, "a:1", 1, BIG);
    let wire = Wire::to(registry.port()).unwrap();
    wire.slow(2 << 20);
    let reference = format!("127.0.0.1:{}/a:1", wire.port());
    let sandbox = sandbox();
    let running = sandbox.microagent(["images", "pull", &reference]).start();
    eventually(Duration::from_secs(60), "half of the image", || {
        (wire.carried() > 3 << 20).then_some(())
    });
    running.signal(Signal::INT);
    assert!(running.finish().was_signaled());
    let list = sandbox
        .microagent(["--json", "images", "list"])
        .run()
        .success();
    assert_eq!(list.parsed()["images"], serde_json::json!([]));

    wire.slow(0);
    let before = wire.carried();
    let resumed = sandbox
        .microagent(["images", "pull", &reference])
        .run()
        .success();
    assert!(resumed.err().contains(" from an earlier pull"), "{resumed}");
    let came = wire.carried() - before;
    assert!(came < (BIG - (2 << 20)) as u64, "{came}");
}

/// What a pull or an import had of memory, and what it could have had, is within what is promised.
fn assert_frugal(arrived: &serde_json::Value) {
    let memory = &arrived["memory"];
    let [peak, bound] =
        ["peak_bytes", "bound_bytes"].map(|what| memory[what].as_u64().unwrap_or_default() >> 20);
    assert!(
        (1..=150).contains(&peak) && (100..=150).contains(&bound),
        "{memory}"
    );
}

#[test]
fn offline_and_outdated() {
    let mut registry = Registry::start().unwrap();
    for name in ["a:1", "b:1"] {
        push(&registry, name, 1, 1000);
    }
    let [a, b] = ["a:1", "b:1"].map(|name| registry.reference(name));
    let sandbox = sandbox();
    let pulled = sandbox
        .microagent(["--json", "images", "pull", &a, &b])
        .run()
        .success()
        .parsed();
    let digest = pulled["images"][0]["digest"].as_str().unwrap().to_owned();
    assert_frugal(&pulled["images"][1]);
    // What was imported has no registry to be compared with.
    let tar = write(sandbox.state(), "rootfs.tar", "");
    std::fs::write(&tar, tar_of(&[("etc/hostname", 0o644, b"x")])).unwrap();
    let imported = sandbox
        .microagent(["--json", "images", "import", "--name", "local:1"])
        .words(&[tar.to_str().unwrap()])
        .run()
        .success();
    assert_frugal(&imported.parsed());

    let state = |image: usize| {
        let list = sandbox
            .microagent(["--json", "images", "outdated"])
            .run()
            .parsed();
        assert_eq!(list["images"].as_array().unwrap().len(), 2, "{list}");
        list["images"][image].clone()
    };
    assert_eq!(state(0)["state"], "current");
    push(&registry, "a:1", 2, 1000);
    let moved = state(0);
    assert_eq!(
        (&moved["state"], &moved["digest"]),
        (&"outdated".into(), &digest.as_str().into())
    );
    assert_eq!(state(1)["state"], "current");
    let table = sandbox
        .microagent(["images", "outdated", &a])
        .run()
        .success();
    assert!(
        table.out().lines().nth(1).unwrap().ends_with("outdated"),
        "{table}"
    );

    // A digest names what is here, so the registry is not needed for it.
    registry.kill();
    let pinned = registry.reference(&format!("a@{digest}"));
    let named = sandbox
        .microagent(["images", "pull", &pinned])
        .run()
        .success();
    assert!(named.out().contains(&digest), "{named}");
    // Where there is no network at all it is the same, and what asks the registry says that it cannot.
    let apart = |words: &[&str]| {
        let command = sandbox.microagent(["images"]).words(words);
        command.without_network().run()
    };
    let named = apart(&["pull", &pinned]).success();
    assert!(named.out().contains(&digest), "{named}");
    let listed = apart(&["list"]).success();
    assert!(listed.out().contains(&digest[7..19]), "{listed}");
    let asked = apart(&["pull", &a]).exited(1);
    assert!(asked.err().contains("unreachable"), "{asked}");
    let unknown = sandbox
        .microagent(["images", "outdated", &a])
        .run()
        .exited(1);
    assert!(
        unknown.out().contains("unknown") && unknown.err().contains("connection"),
        "{unknown}"
    );

    registry.restart().unwrap();
    let again = sandbox.microagent(["images", "pull", &a]).run().success();
    let old = &digest["sha256:".len()..][..12];
    assert!(
        again
            .err()
            .contains(&format!("the tag moved from {old} to ")),
        "{again}"
    );
}

#[test]
fn mirrors_and_blocks_of_the_settings_file() {
    let origin = registry(Setup::default(), &["tiny:1"]);
    let mirror = registry(Setup::default(), &["copies/tiny:1"]);
    let sandbox = sandbox();
    let host = format!("127.0.0.1:{}", origin.port());
    let copies = format!("127.0.0.1:{}", mirror.port());
    let settings = |text: &str| write(sandbox.state(), "registries.toml", text);
    settings(&format!(
        "[registry.\"{host}\"]\nmirrors = [\"127.0.0.1:1\", \"{copies}/copies\"]\n"
    ));
    let pulled = sandbox
        .microagent(["images", "pull", &origin.reference("tiny:1")])
        .run()
        .success();
    assert!(
        pulled
            .err()
            .contains("The mirror 127.0.0.1:1 was passed over"),
        "{pulled}"
    );
    assert!(
        pulled.err().contains(&format!("from the mirror {copies}")),
        "{pulled}"
    );
    settings(&format!("[registry.\"{host}\"]\nblocked = true\n"));
    let blocked = sandbox
        .microagent(["images", "pull", &origin.reference("tiny:1")])
        .run()
        .exited(1);
    assert!(
        blocked.err().contains("is blocked in registries.toml"),
        "{blocked}"
    );
    // A file that was named must be there.
    let gone = sandbox
        .microagent(["images", "pull", "x.example/y"])
        .env("MICROAGENT_REGISTRIES", "/no/such.toml")
        .run()
        .exited(1);
    assert!(gone.err().contains("/no/such.toml"), "{gone}");
}
