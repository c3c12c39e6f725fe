//! `cargo xtask install`: one executable and one symlink.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::Context as _;

use crate::process;

/// Builds and installs below `prefix`.
pub(crate) fn run(prefix: &Path) -> anyhow::Result<()> {
    let built = release_binary()?;
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let installed = bin.join("microagent");
    // A running microagent keeps its old file: write beside it and rename.
    let part = bin.join(".microagent.part");
    fs::copy(&built, &part)
        .and_then(|_| fs::rename(&part, &installed))
        .with_context(|| {
            format!(
                "cannot install {}; try --prefix with a directory of yours",
                installed.display()
            )
        })?;
    let link = bin.join("microagent-supervisor");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    symlink("microagent", &link).with_context(|| format!("cannot make {}", link.display()))?;
    println!(
        "installed {} and its symlink {}",
        installed.display(),
        link.display()
    );
    match process::find("microagent") {
        Some(found) if found != installed => {
            println!("note: {} comes first on your PATH", found.display());
        }
        None => println!("note: {} is not on your PATH", bin.display()),
        Some(_) => {}
    }
    Ok(())
}

/// Builds the release executable and tells where it is.
pub(crate) fn release_binary() -> anyhow::Result<std::path::PathBuf> {
    process::run(process::cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "microagent-cli",
    ]))?;
    Ok(process::target_dir().join("release/microagent"))
}
