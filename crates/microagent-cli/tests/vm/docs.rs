//! What the documents show happens as they show it: every command in them is run.

use std::{collections::BTreeSet, fs, path::Path};

use testkit::transcript;

use crate::scene::Scene;

/// What is shown and not run here: the document, the line, and why.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "README.md",
        "cargo xtask demo",
        "installs packages and builds a release",
    ),
    ("README.md", "cargo xtask test", "is what runs this"),
    ("README.md", "cargo xtask install", BUILDS),
    ("README.md", "microagent kernel build", TEN_MINUTES),
    (
        "README.md",
        "microagent connect agent-1",
        "a session; docs/getting-started.md has one",
    ),
    (
        "docs/backends.md",
        "cargo xtask conformance",
        "CI runs the suite as a test",
    ),
    (
        "docs/getting-started.md",
        "sudo apt-get install",
        "installs packages",
    ),
    ("docs/getting-started.md", "cargo xtask install", BUILDS),
    (
        "docs/getting-started.md",
        "microagent kernel build",
        TEN_MINUTES,
    ),
    (
        "docs/getting-started.md",
        "microagent kernel use ID",
        TWO_KERNELS,
    ),
    (
        "docs/getting-started.md",
        "microagent run --kernel ID",
        TWO_KERNELS,
    ),
    (
        "docs/performance.md",
        "microagent perf boot",
        "ten boots each; `perf` has few",
    ),
];

/// What is shown as it was once, which reads better: the document, the words, and what of them holds each time.
const ONCE: &[(&str, &str, &str)] = &[
    ("README.md", "run-brave-otter-4f9c", "run-…"),
    (
        "README.md",
        "6.1.0-56-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 x86_64",
        "6.…",
    ),
    ("README.md", "run-calm-heron-b1d2", "run-…"),
];

const BUILDS: &str = "builds a release";
const TEN_MINUTES: &str = "takes ten minutes; `tests/kernels/build.rs` builds less";
const TWO_KERNELS: &str = "there is one kernel here; `kernels` has two";

/// Blocks that are no commands: the document, the kind, and what holds them.
const NO_COMMANDS: &[(&str, &str, &str)] = &[
    ("README.md", "rust", "snippets.rs compiles it"),
    ("docs/cli.md", "", "help; examples.rs runs its examples"),
    ("docs/concepts.md", "", "a drawing"),
    ("docs/design/disks.md", "", "a drawing"),
    (
        "docs/json.md",
        "json",
        "documents.rs reads it as what is printed",
    ),
    ("docs/library.md", "rust", "snippets.rs compiles it"),
    (
        "docs/protocol.md",
        "transcript",
        "the supervisor's tests speak it",
    ),
    ("docs/registries.md", "toml", "the library's tests read it"),
    ("docs/spec.md", "yaml", "the library's tests read it"),
];

fn text(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(document);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {error}"))
}

fn elsewhere(document: &str, command: &str) -> bool {
    let named = |(of, line, _): &&(&str, &str, &str)| *of == document && command.starts_with(line);
    ELSEWHERE.iter().any(|entry| named(&entry))
}

/// Runs the commands of one document, in order.
fn holds(document: &str, scene: Scene) {
    let mut text = text(document);
    for (_, once, always) in ONCE.iter().filter(|(of, ..)| *of == document) {
        assert!(text.contains(once), "{document} does not show {once}");
        text = text.replace(once, always);
    }
    for step in transcript::steps(&text) {
        if elsewhere(document, &step.command) {
            continue;
        }
        if let Err(report) = scene.step(&step) {
            panic!("{document}:{}: $ {}\n{report}", step.line, step.command);
        }
    }
    scene.end();
}

/// The documents with commands, and where each takes place.
macro_rules! documents {
    ($($test:ident: $document:literal in $scene:expr;)*) => {
        const RUN: &[&str] = &[$($document),*];
        $(#[test] fn $test() { holds($document, $scene); })*
    };
}

documents! {
    readme: "README.md" in Scene::bare()
        .with_images("bash", &[])
        .with_registry(None, &["library/ubuntu:24.04", "library/python:3.13-slim"])
        .with_rootfs("rootfs.tar.gz")
        .with_variable("TOKEN", "t0ken");
    getting_started: "docs/getting-started.md" in Scene::bare();
    concepts: "docs/concepts.md" in Scene::bare();
    images: "docs/images.md" in Scene::bare()
        .with_images("bash", &["tools:3"])
        .with_rootfs("old.tar.gz")
        .with_commands("microagent images import --name old:1 old.tar.gz && microagent create agent-1 debian:12")
        .with_registry(None, &[]);
    troubleshooting: "docs/troubleshooting.md" in Scene::bare().with_commands(
        "microagent create agent debian:12 && printf 'name: agent\\nimage: debian:13\\n' >microagent.yaml",
    );
    registries: "docs/registries.md" in Scene::bare()
        .with_registry(Some("me"), &[])
        .with_program("pass", &format!("[ \"$*\" = 'show reg' ] && echo {}", transcript::PASSWORD));
}

/// Every document for users, by its name.
fn documents() -> Vec<String> {
    let mut names = vec!["README.md".to_owned(), "SECURITY.md".to_owned()];
    for directory in ["docs", "docs/design"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(directory);
        let entries = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let pages = entries.map(|name| format!("{directory}/{}", name.to_str().unwrap()));
        names.extend(pages.filter(|name| name.ends_with(".md")));
    }
    names
}

#[test]
fn what_is_shown_is_run_or_said_why_not() {
    let mut unused: BTreeSet<_> = ELSEWHERE.iter().chain(NO_COMMANDS).collect();
    for document in documents() {
        let text = text(&document);
        for block in transcript::blocks(&text) {
            if ["console", "sh"].contains(&block.kind.as_str()) {
                continue;
            }
            let known = |entry: &&(&str, &str, &str)| {
                (entry.0, entry.1) == (document.as_str(), block.kind.as_str())
            };
            let entry = NO_COMMANDS.iter().find(known);
            let entry = entry.unwrap_or_else(|| {
                panic!(
                    "{document}:{}: a block that is neither run nor named here",
                    block.line
                )
            });
            assert!(
                !block.kind.is_empty()
                    || document == "docs/cli.md"
                    || !block.lines.concat().contains("microagent "),
                "{document}:{}: commands are set as `sh` or `console`",
                block.line
            );
            unused.remove(entry);
        }
        for step in transcript::steps(&text) {
            assert!(
                RUN.contains(&document.as_str()) || elsewhere(&document, &step.command),
                "nobody runs {document}:{}",
                step.line
            );
            unused.retain(|(of, line, _)| *of != document || !step.command.starts_with(line));
        }
    }
    assert!(unused.is_empty(), "shown nowhere: {unused:?}");
}
