//! `cargo xtask kernel`: the tuned kernel, built and tried.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Context as _;
use clap::Subcommand;

use crate::{arm64, install, packages, process};

#[derive(Subcommand)]
pub(crate) enum KernelTask {
    /// Build it for an architecture, and say where it is.
    Build {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
        /// x86_64 or aarch64; this host's by default.
        #[arg(long)]
        arch: Option<String>,
        /// Where to: `DIR/vmlinux`, or `DIR/Image` on arm64.
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Boot it, built first if need be, and look whether what agents need works in it. arm64's is emulated on
    /// another host, by a microagent that is built for arm64 and translated (`cargo xtask arm64`).
    Test {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
        /// x86_64 or aarch64; this host's by default.
        #[arg(long)]
        arch: Option<String>,
    },
}

/// What tries the kernel that is named in `MICROAGENT_TUNED_KERNEL`: package, test program and filter.
const TESTS: [(&str, &str, &str); 2] = [
    ("microagent-cli", "vm", "tuned::"),
    ("microagent-hypervisor", "tuned", ""),
];

pub(crate) fn run(task: KernelTask) -> anyhow::Result<ExitCode> {
    match task {
        KernelTask::Build { yes, arch, to } => {
            packages::install(&needed(arch.as_deref()), yes)?;
            build(&to.unwrap_or_else(directory), arch.as_deref())?;
        }
        KernelTask::Test { yes, arch } => {
            let mut needed = needed(arch.as_deref());
            needed.push(packages::TEST);
            packages::install(&needed, yes)?;
            let kernel = built(arch.as_deref())?;
            for (package, program, filter) in &TESTS {
                let mut command = process::cargo();
                command
                    .args(["test", "--locked", "--package", package])
                    .args(["--test", program, filter, "--", "--nocapture", "--ignored"])
                    .env(
                        "MICROAGENT_TEST_CACHE",
                        process::target_dir().join("test-cache"),
                    )
                    .env("MICROAGENT_TUNED_KERNEL", &kernel);
                if *filter == "tuned::" && is_foreign(arch.as_deref()) {
                    arm64::containers(yes, &mut command)?;
                } else {
                    process::run(&mut command)?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The packages that building and trying it for an architecture takes.
fn needed(arch: Option<&str>) -> Vec<&'static [packages::Need]> {
    let mut needed = vec![packages::RUN, packages::KERNEL];
    if is_foreign(arch) && is_aarch64(arch) {
        needed.push(packages::KERNEL_AARCH64);
    }
    needed
}

fn is_aarch64(arch: Option<&str>) -> bool {
    matches!(arch.unwrap_or(std::env::consts::ARCH), "aarch64" | "arm64")
}

fn is_foreign(arch: Option<&str>) -> bool {
    is_aarch64(arch) != is_aarch64(None)
}

/// Builds, and says what it took.
fn build(to: &Path, arch: Option<&str>) -> anyhow::Result<()> {
    let mut command = Command::new(install::release_binary()?);
    command.args(["kernel", "build", "--to"]).arg(to);
    if let Some(arch) = arch {
        command.args(["--arch", arch]);
    }
    let (start, before) = (Instant::now(), process::children_seconds()?);
    process::run(&mut command).context("the kernel cannot be built")?;
    println!(
        "built in {:.1} minutes, {:.1} of processor time",
        start.elapsed().as_secs_f64() / 60.0,
        (process::children_seconds()? - before) / 60.0
    );
    Ok(())
}

fn directory() -> PathBuf {
    process::target_dir().join("kernel")
}

/// The kernel for an architecture, built if it is not there yet.
pub(crate) fn built(arch: Option<&str>) -> anyhow::Result<PathBuf> {
    let name = if is_aarch64(arch) { "Image" } else { "vmlinux" };
    let kernel = directory().join(name);
    if !kernel.exists() {
        packages::install(&needed(arch), false)?;
        build(&directory(), arch)?;
    }
    Ok(kernel)
}
