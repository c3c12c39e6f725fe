//! Builds the guest agent as a static binary for this host's architecture and hands it to the crate to embed, so
//! that a plain `cargo build` of anything that boots a VM needs no second step and no further toolchain.
//!
//! The guest is built by a nested cargo in `<target>/guest`: a directory of its own, because the outer cargo holds the
//! lock of the outer one, and shared by every profile, because the guest has only one.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// Name of the guest's package and binary.
const GUEST: &str = "microagent-guest";

/// Crates the guest is built from; a change to any of them builds it again.
const GUEST_SOURCES: [&str; 4] = [
    GUEST,
    "microagent-files",
    "microagent-protocol",
    "microagent-relay",
];

/// Prebuilt guest binary, for building microagent for a system on which the guest itself cannot be compiled.
const PREBUILT: &str = "MICROAGENT_GUEST_BINARY";

/// Every microVM reads the guest into memory before it does anything else.
const MAX_GUEST_BYTES: usize = 2 * 1024 * 1024;

/// A file with the root metadata of the kernel repository to trust, and the repository's address.
const KERNEL_ROOT: &str = "MICROAGENT_KERNEL_ROOT";
const KERNEL_REPOSITORY: &str = "MICROAGENT_KERNEL_REPOSITORY";

fn main() {
    if let Err(error) = embed_guest().and_then(|()| embed_kernel_root()) {
        // A build script's only way to fail with a message of its own.
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn embed_guest() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(required_env("OUT_DIR")?);
    let target = required_env("TARGET")?;
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={PREBUILT}");

    let guest = match env::var_os(PREBUILT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            check_static(
                fs::read(&path)
                    .map_err(|e| format!("{PREBUILT}: cannot read {}: {e}", path.display()))?,
                &path,
            )?
        }
        None if can_compile_for(&target)? => {
            let path = compile_guest(&out_dir, &target)?;
            check_static(fs::read(&path)?, &path)?
        }
        None => {
            println!(
                "cargo::warning=no guest agent is embedded for {target}: set {PREBUILT} to a static Linux build of \
                 {GUEST} for the same architecture; until then a VM needs the guest handed to it"
            );
            Vec::new()
        }
    };

    let digest: String = Sha256::digest(&guest)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(out_dir.join("guest"), &guest)?;
    println!("cargo::rustc-env=MICROAGENT_GUEST_SHA256={digest}");
    Ok(())
}

/// Without one nothing is trusted until the user names a root.
fn embed_kernel_root() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={KERNEL_ROOT}");
    println!("cargo::rerun-if-env-changed={KERNEL_REPOSITORY}");
    let root = match env::var_os(KERNEL_ROOT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path)
                .map_err(|e| format!("{KERNEL_ROOT}: cannot read {}: {e}", path.display()))?
        }
        None => Vec::new(),
    };
    fs::write(
        PathBuf::from(required_env("OUT_DIR")?).join("kernel-root.json"),
        root,
    )?;
    Ok(())
}

/// Whether the toolchain that builds this crate can also link a Linux program for `target`'s architecture.
fn can_compile_for(target: &str) -> Result<bool, Box<dyn Error>> {
    let host = required_env("HOST")?;
    let architecture = |triple: &str| triple.split('-').next().map(str::to_owned);
    Ok(target.contains("-linux-") && architecture(target) == architecture(&host))
}

fn compile_guest(out_dir: &Path, target: &str) -> Result<PathBuf, Box<dyn Error>> {
    let crates = PathBuf::from(required_env("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("this crate has no parent directory")?
        .to_owned();
    let workspace = crates
        .parent()
        .ok_or("the crates have no workspace directory")?
        .to_owned();
    for source in GUEST_SOURCES {
        println!("cargo::rerun-if-changed={}", crates.join(source).display());
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }

    let target_dir = guest_target_dir(out_dir, target);
    let mut cargo = Command::new(required_env("CARGO")?);
    cargo
        .arg("build")
        .args([
            "--package",
            GUEST,
            "--bin",
            GUEST,
            "--profile",
            "guest",
            "--target",
            target,
        ])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&workspace);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_build) {
            cargo.env_remove(name);
        }
    }
    // Position-dependent: nothing to relocate at start, smaller, and PID 1 of a VM gains nothing from a random base.
    cargo.env(
        "RUSTFLAGS",
        "-C target-feature=+crt-static -C relocation-model=static",
    );

    let output = cargo
        .output()
        .map_err(|e| format!("cannot start cargo to build {GUEST}: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "building {GUEST} as a static binary failed ({}). It needs a C linker and a static C library \
             (packages gcc and libc6-dev, or glibc-static).\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(target_dir.join(target).join("guest").join(GUEST))
}

/// Variables cargo sets for the outer build, and the caller's own wishes for it: they must not shape the guest, or
/// `cargo clippy`, coverage runs and cross builds would each build it anew, or wrongly.
fn belongs_to_outer_build(name: &str) -> bool {
    const EXACT: [&str; 14] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "LLVM_PROFILE_FILE",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "OUT_DIR",
    ];
    // Where packages come from, how many jobs may run, which linker to use for the target.
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_MAKEFLAGS",
        "CARGO_SOURCE_",
    ];
    let linker = name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER");
    EXACT.contains(&name)
        || name.starts_with("DEP_")
        || (name.starts_with("CARGO") && !linker && !KEPT.iter().any(|kept| name.starts_with(kept)))
}

/// `<target>/guest`, from `<target>[/<triple>]/<profile>/build/<package>/out`; beside the output if that is not the layout.
fn guest_target_dir(out_dir: &Path, target: &str) -> PathBuf {
    let root = out_dir
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "build"))
        .and_then(|build| build.parent()?.parent())
        .map(|root| {
            if root.ends_with(target) {
                root.parent().unwrap_or(root)
            } else {
                root
            }
        });
    root.unwrap_or(out_dir).join("guest")
}

/// The guest runs before there is a file system to load libraries from.
fn check_static(guest: Vec<u8>, path: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    const PT_INTERP: u32 = 3;
    let name = path.display();
    let number = |offset: usize, width: usize| -> Option<usize> {
        let bytes = guest.get(offset..offset.checked_add(width)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | usize::from(*byte)),
        )
    };
    if guest.get(..5) != Some(b"\x7fELF\x02") {
        return Err(format!("{name} is not a 64-bit ELF program").into());
    }
    let headers = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let (Some(start), Some(size), Some(count)) = headers else {
        return Err(format!("{name} has a truncated ELF header").into());
    };
    if (0..count)
        .any(|index| number(start.saturating_add(index * size), 4) == Some(PT_INTERP as usize))
    {
        return Err(format!("{name} is dynamically linked; the guest agent must be static").into());
    }
    if guest.len() > MAX_GUEST_BYTES {
        return Err(format!(
            "{name} is {} bytes; the guest agent may have {MAX_GUEST_BYTES}",
            guest.len()
        )
        .into());
    }
    Ok(guest)
}

fn required_env(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|e| format!("cargo did not set {name}: {e}").into())
}
