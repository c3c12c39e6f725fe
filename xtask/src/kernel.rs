//! `cargo xtask kernel`: the tuned kernel, built and tried.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Context as _;
use clap::Subcommand;

use crate::{install, packages, process};

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
    /// Boot it, built first if need be, and look whether what agents need works in it.
    Test {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) fn run(task: KernelTask) -> anyhow::Result<ExitCode> {
    match task {
        KernelTask::Build { yes, arch, to } => {
            let mut needed = vec![packages::RUN, packages::KERNEL];
            let own = std::env::consts::ARCH;
            if own != "aarch64" && matches!(arch.as_deref(), Some("aarch64" | "arm64")) {
                needed.push(packages::KERNEL_AARCH64);
            }
            packages::install(&needed, yes)?;
            build(&to.unwrap_or_else(directory), arch.as_deref())?;
        }
        KernelTask::Test { yes } => {
            packages::install(&[packages::RUN, packages::TEST, packages::KERNEL], yes)?;
            let kernel = built()?;
            process::run(
                process::cargo()
                    .args([
                        "test",
                        "--locked",
                        "--package",
                        "microagent-cli",
                        "--test",
                        "vm",
                    ])
                    .args(["tuned::", "--", "--nocapture", "--ignored"])
                    .env(
                        "MICROAGENT_TEST_CACHE",
                        process::target_dir().join("test-cache"),
                    )
                    .env("MICROAGENT_TUNED_KERNEL", kernel),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
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

/// The kernel for this host, built if it is not there yet.
pub(crate) fn built() -> anyhow::Result<PathBuf> {
    let name = match std::env::consts::ARCH {
        "aarch64" => "Image",
        _ => "vmlinux",
    };
    let kernel = directory().join(name);
    if !kernel.exists() {
        packages::install(&[packages::KERNEL], false)?;
        build(&directory(), None)?;
    }
    Ok(kernel)
}
