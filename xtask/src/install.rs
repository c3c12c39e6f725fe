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
    let remedy = || {
        format!(
            "cannot install {}; try --prefix with a directory of yours",
            installed.display()
        )
    };
    fs::copy(&built, &part).with_context(remedy)?;
    if cfg!(target_os = "macos") {
        process::run(&mut codesign(&part))?;
    }
    fs::rename(&part, &installed).with_context(remedy)?;
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

/// Signs a program with what Apple's framework asks of it, without a certificate: for this Mac alone.
fn codesign(program: &Path) -> Command {
    let mut command = Command::new("/usr/bin/codesign");
    command
        .args(["--force", "--sign", "-", "--entitlements"])
        .arg(process::root().join("xtask/macos/microagent.entitlements"))
        .arg(program);
    command
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entitlement_that_a_signature_gets_is_the_one_that_the_framework_asks_for() {
        let command = codesign(Path::new("/p"));
        let arguments: Vec<_> = command.get_args().collect();
        let at = arguments.iter().position(|one| *one == "--entitlements");
        let plist = fs::read_to_string(arguments[at.unwrap() + 1]).unwrap();
        let value = plist.split("<key>com.apple.security.virtualization</key>");
        assert!(value.last().unwrap().trim_start().starts_with("<true/>"));
        assert_eq!(*arguments.last().unwrap(), "/p");
    }
}
