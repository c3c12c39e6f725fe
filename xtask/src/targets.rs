//! `cargo xtask check-targets`: the types of every crate, for the systems that this one is not.
//!
//! A toolchain with its library's source checks them without a linker or a system's own headers. C code
//! of dependencies is not compiled: a stand-in takes the compiler's place.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{
    packages,
    process::{self, Place},
};

/// The packaged toolchain, which is beside the one that builds everything else.
const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";

/// A system, and what is left out there.
struct Target {
    triple: &'static str,
    left_out: &'static [(&'static str, &'static str)],
}

const GUEST: (&str, &str) = (
    "microagent-guest",
    "runs in the machine, which is always Linux",
);

const TARGETS: &[Target] = &[
    Target {
        triple: "aarch64-unknown-linux-gnu",
        left_out: &[],
    },
    Target {
        triple: "aarch64-apple-darwin",
        left_out: &[GUEST],
    },
    Target {
        triple: "x86_64-pc-windows-msvc",
        left_out: &[
            GUEST,
            ("xtask", "drives a Debian host's tools, and is not shipped"),
        ],
    },
];

/// What a compiler or an archiver is asked to write is there, and empty.
const STAND_IN: &str = r#"#!/bin/sh
previous=
for argument in "$@"; do
    case $argument in
        [-/]Fo*) : > "${argument#?Fo}" ;;
        [-/][oO][uU][tT]:*) : > "${argument#?????}" ;;
    esac
    [ "$previous" = -o ] && : > "$argument"
    previous=$argument
done
exit 0
"#;

/// Installs the toolchain and checks all targets, or the named one.
pub(crate) fn run(yes: bool, only: Option<&str>) -> anyhow::Result<()> {
    packages::install(&[packages::TARGETS], yes)?;
    check_all(&Place::Here, only)
}

/// Checks all targets, or the named one.
pub(crate) fn check_all(place: &Place, only: Option<&str>) -> anyhow::Result<()> {
    let directory = process::target_dir().join("check-targets");
    let stand_in = stand_in(&directory)?;
    let mut known = false;
    for target in TARGETS {
        if only.is_some_and(|only| only != target.triple) {
            continue;
        }
        known = true;
        for (name, why) in target.left_out {
            place.say(&format!("{}: without {name}, which {why}", target.triple))?;
        }
        check(place, target, &directory, &stand_in)?;
    }
    let triples: Vec<_> = TARGETS.iter().map(|target| target.triple).collect();
    anyhow::ensure!(
        known,
        "{} is not a target here; there are {}",
        only.unwrap_or_default(),
        triples.join(", ")
    );
    Ok(())
}

fn check(place: &Place, target: &Target, directory: &Path, stand_in: &Path) -> anyhow::Result<()> {
    let mut command = cargo();
    command
        .args(["check", "--locked", "--workspace", "--target"])
        .args([target.triple, "-Zbuild-std=std,panic_abort"])
        .env("RUSTFLAGS", "-D warnings")
        .env("CARGO_TARGET_DIR", directory);
    for (name, _) in target.left_out {
        command.args(["--exclude", name]);
    }
    let suffix = target.triple.replace('-', "_");
    for tool in ["CC", "CXX", "AR"] {
        command.env(format!("{tool}_{suffix}"), stand_in);
    }
    place.run(&mut command)
}

/// The packaged toolchain at the top of the checkout; it can build its own library.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(CARGO);
    command
        .current_dir(process::root())
        .env("RUSTC", RUSTC)
        // It is a stable one; building the library is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn stand_in(directory: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join("no-c-compiler");
    fs::write(&path, STAND_IN)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| path.display().to_string())?;
    Ok(path)
}
