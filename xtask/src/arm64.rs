//! `cargo xtask arm64`: the whole of microagent for arm64, on a host of another kind.
//!
//! A packaged compiler with its library's source builds it, QEMU's user mode translates the executable, and what it
//! starts is this host's own QEMU, which emulates the machine. That leaves out KVM, and confinement: the user
//! mode knows neither namespaces nor Landlock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{kernel, packages, process, targets};

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const TRANSLATOR: &str = "/usr/bin/qemu-aarch64-static";
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
const HANDLER: &str = "microagent-arm64";
/// The beginning of an arm64 executable, and which bits of it count.
const MAGIC: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
const MASK: &str =
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
const IMAGE: &str = "busybox:arm64";
const WORKSPACE: &str = "arm64";

/// Builds the executable, and has what `MICROAGENT_TUNED_ARM64` names tried in a machine that it emulates.
pub(crate) fn containers(yes: bool, try_it: &mut Command) -> anyhow::Result<()> {
    let executable = executable(yes)?;
    let _translated = Handler::register()?;
    process::run(try_it.env("MICROAGENT_TUNED_ARM64", executable))
}

/// The executable for arm64, built.
fn executable(yes: bool) -> anyhow::Result<PathBuf> {
    let needed: [&[packages::Need]; 5] = [
        packages::RUN,
        packages::KERNEL,
        packages::KERNEL_AARCH64,
        packages::TARGETS,
        packages::ARM64,
    ];
    packages::install(&needed, yes)?;
    let directory = directory();
    let guest = built(
        &directory,
        "guest",
        "microagent-guest",
        "microagent-guest",
        None,
    )?;
    // The build of the executable replaces nothing there, and must not depend on a file that changes.
    let kept = directory.join("guest-agent");
    fs::copy(&guest, &kept).with_context(|| guest.display().to_string())?;
    built(
        &directory,
        "dev",
        "microagent-cli",
        "microagent",
        Some(&kept),
    )
}

fn directory() -> PathBuf {
    process::target_dir().join("arm64")
}

/// Builds everything, and runs a guest.
pub(crate) fn run(yes: bool) -> anyhow::Result<()> {
    let executable = executable(yes)?;
    let directory = directory();
    let kernel = kernel::built(Some("aarch64"))?;
    let image = image(&directory)?;
    let _translated = Handler::register()?;

    let state = directory.join("state");
    let microagent = |arguments: &[&str]| {
        let mut command = Command::new(&executable);
        command.arg("--state-dir").arg(&state).args(arguments);
        command.env("MICROAGENT_CONFINEMENT", "off");
        command
    };
    let with = |arguments: &[&str], path: &Path| {
        let mut command = microagent(arguments);
        process::run(command.arg(path))
    };
    with(&["kernel", "install", "--default", "--from"], &kernel)?;
    with(
        &[
            "images",
            "import",
            "--platform",
            "linux/arm64",
            "--name",
            IMAGE,
        ],
        &image,
    )?;
    process::run(&mut microagent(&["doctor"]))?;
    let said = |arguments: &[&str], wanted: &str| -> anyhow::Result<()> {
        let mut command = microagent(arguments);
        println!("$ {}", process::shown(&command));
        let output = process::output(&mut command)?;
        let out = String::from_utf8_lossy(&output.stdout);
        print!("{out}");
        if out.trim() != wanted {
            bail!("the guest should have said {wanted}");
        }
        Ok(())
    };
    said(&["run", IMAGE, "/bin/busybox", "uname", "-m"], "aarch64")?;
    let create = ["create", "--cpus", "2", WORKSPACE, IMAGE];
    process::run(&mut microagent(&create))?;
    let lived = || -> anyhow::Result<()> {
        process::run(&mut microagent(&["start", WORKSPACE]))?;
        let exec = |words: &[&str], wanted: &str| {
            said(
                &[&["exec", WORKSPACE, "--", "/bin/busybox"], words].concat(),
                wanted,
            )
        };
        exec(&["nproc"], "2")?;
        exec(&["sh", "-c", "echo kept > /note; sync"], "")?;
        exec(
            &["sh", "-c", "ip -o addr show eth0 | grep -c 10.0.2.15"],
            "1",
        )?;
        process::run(&mut microagent(&["halt", WORKSPACE]))?;
        process::run(&mut microagent(&["start", WORKSPACE]))?;
        exec(&["cat", "/note"], "kept")
    };
    let lived = lived();
    let deleted = process::run(&mut microagent(&["delete", "--force", WORKSPACE]));
    lived.and(deleted)
}

/// A program for arm64.
fn built(
    directory: &Path,
    profile: &str,
    package: &str,
    program: &str,
    guest: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let suffix = TRIPLE.replace('-', "_");
    let mut command = targets::cargo();
    command
        .args(["build", "--locked", "-Zbuild-std=std,panic_abort"])
        .args(["--target", TRIPLE, "--profile", profile])
        .args(["--package", package])
        .env("CARGO_TARGET_DIR", directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env(
            format!("CARGO_TARGET_{}_LINKER", suffix.to_uppercase()),
            "aarch64-linux-gnu-gcc",
        )
        .env(format!("CC_{suffix}"), "aarch64-linux-gnu-gcc")
        .env(format!("AR_{suffix}"), "aarch64-linux-gnu-ar")
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    if let Some(guest) = guest {
        command.env("MICROAGENT_GUEST_BINARY", guest);
    }
    process::run(&mut command)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(directory.join(TRIPLE).join(folder).join(program))
}

/// A root file system with one static program.
fn image(directory: &Path) -> anyhow::Result<PathBuf> {
    let tar = directory.join("busybox.tar");
    if !tar.exists() {
        let part = directory.join("busybox.part.tar");
        let mut make = Command::new("mmdebstrap");
        make.args(["--quiet", "--architectures=arm64", "--variant=extract"])
            .args(["--include=busybox-static", "bookworm"]);
        process::run(make.arg(&part))?;
        fs::rename(&part, &tar)?;
    }
    Ok(tar)
}

/// While it is there, this host runs arm64 executables.
struct Handler;

impl Handler {
    fn register() -> anyhow::Result<Self> {
        let register = Path::new(HANDLERS).join("register");
        if !register.exists() {
            let mut mount = Command::new("mount");
            process::run(mount.args(["-t", "binfmt_misc", "binfmt_misc", HANDLERS]))
                .context("running programs of another architecture takes root and binfmt_misc")?;
        }
        // One that a run left behind, or another that keeps no names: microagent goes by the one it is called.
        unregister();
        let entry = format!(":{HANDLER}:M::{MAGIC}:{MASK}:{TRANSLATOR}:POCF");
        fs::write(&register, entry).with_context(|| register.display().to_string())?;
        Ok(Self)
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        unregister();
    }
}

fn unregister() {
    // It may not be there.
    let _gone = fs::write(Path::new(HANDLERS).join(HANDLER), "-1");
}
