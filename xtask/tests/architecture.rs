//! Holds the arrows that ARCHITECTURE.md draws: who may depend on whom.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Each crate and the crates of ours it may use. What is not listed is not allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("microagent-protocol", &[]),
    ("microagent-host", &[]),
    ("microagent-disk", &["microagent-host"]),
    ("microagent-ext4", &["microagent-disk", "microagent-host"]),
    ("microagent-files", &["microagent-protocol"]),
    ("microagent-relay", &[]),
    (
        "microagent-guest",
        &[
            "microagent-files",
            "microagent-protocol",
            "microagent-relay",
        ],
    ),
    (
        "microagent-hypervisor",
        &[
            "microagent-disk",
            "microagent-host",
            "microagent-protocol",
            "microagent-relay",
        ],
    ),
    (
        "microagent-image",
        &[
            "microagent-disk",
            "microagent-ext4",
            "microagent-files",
            "microagent-host",
            "microagent-protocol",
        ],
    ),
    (
        "microagent-kernel",
        &["microagent-host", "microagent-protocol"],
    ),
    (
        "microagent-supervisor",
        &[
            "microagent-disk",
            "microagent-host",
            "microagent-hypervisor",
            "microagent-protocol",
            "microagent-relay",
        ],
    ),
    (
        "microagent",
        &[
            "microagent-disk",
            "microagent-ext4",
            "microagent-files",
            "microagent-host",
            "microagent-image",
            "microagent-kernel",
            "microagent-protocol",
        ],
    ),
    (
        "microagent-cli",
        &["microagent", "microagent-host", "microagent-supervisor"],
    ),
    ("testkit", &[]),
    ("xtask", &[]),
];

/// What has no place in the tree of a small, synchronous, permissively licensed program.
const UNWANTED: &[&str] = &[
    "tokio",
    "async-std",
    "openssl-sys",
    "aws-lc-sys",
    "native-tls",
];

/// The tree as this platform compiles it: what only another would pull in is no part of what we ship.
fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", &host()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .expect("rustc starts");
    String::from_utf8(output.stdout)
        .expect("rustc speaks UTF-8")
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host")
        .to_owned()
}

fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().expect("packages")
}

#[test]
fn crates_depend_only_downward() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let ours: Vec<_> = packages(&metadata)
        .iter()
        .filter(|package| package["source"].is_null())
        .collect();
    assert_eq!(
        ours.len(),
        ARROWS.len(),
        "a crate is missing from ARROWS, or gone"
    );
    for package in ours {
        let name = package["name"].as_str().expect("name");
        let may = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in ARROWS"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("name");
            // Tests may use anything of ours.
            if dependency["kind"] == "dev" || !allowed.contains_key(on) {
                continue;
            }
            assert!(may.contains(&on), "{name} must not depend on {on}");
        }
    }
}

#[test]
fn licences_are_permissive_and_known() {
    let accepted = [
        "Apache-2.0",
        "MIT",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "0BSD",
        "Unlicense",
        "CC0-1.0",
    ];
    // Each of these is in docs/dependencies.md with its reason.
    let excepted = ["Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for package in packages(&metadata()) {
        let name = &package["name"];
        let licence = package["license"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} states no licence"));
        let fine = licence.replace(['(', ')'], "").split(" AND ").all(|all| {
            all.split(" OR ").flat_map(|one| one.split('/')).any(|one| {
                let one = one.trim();
                accepted.contains(&one) || excepted.contains(&one)
            })
        });
        assert!(fine, "{name} has the licence {licence:?}");
    }
}

#[test]
fn the_tree_stays_lean() {
    for package in packages(&metadata()) {
        let name = package["name"].as_str().expect("name");
        assert!(!UNWANTED.contains(&name), "{name} came into the tree");
    }
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let documented = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/dependencies.md"
    ))
    .expect("docs/dependencies.md is there");
    for package in packages(&metadata())
        .iter()
        .filter(|package| package["source"].is_null())
    {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().expect("name");
            let ours = dependency["source"].is_null();
            assert!(
                ours || documented.contains(&format!("| `{name}` |")),
                "{name} (used by {}) has no line in docs/dependencies.md",
                package["name"]
            );
        }
    }
}
