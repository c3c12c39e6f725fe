//! `cargo xtask install`: one executable, one symlink, and what helps a person to use it.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

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
    share(&installed, &prefix.join("share"))?;
    match process::find("microagent") {
        Some(found) if found != installed => {
            println!("note: {} comes first on your PATH", found.display());
        }
        None => println!("note: {} is not on your PATH", bin.display()),
        Some(_) => {}
    }
    Ok(())
}

/// Where each shell looks for completions below `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/microagent"),
    ("zsh", "zsh/site-functions/_microagent"),
    ("fish", "fish/vendor_completions.d/microagent.fish"),
];

/// Has `program` write its completions and manual pages below `share`.
fn share(program: &Path, share: &Path) -> anyhow::Result<()> {
    for (shell, place) in COMPLETIONS {
        let path = share.join(place);
        let output = Command::new(program)
            .args(["completions", shell])
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "it printed no completions for {shell}"
        );
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(&path, output.stdout)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    process::run(Command::new(program).arg("man").arg(share.join("man/man1")))
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
