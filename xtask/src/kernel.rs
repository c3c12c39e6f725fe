//! `cargo xtask kernel`: the tuned kernel, built and tried.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
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
            packages::install(&[packages::RUN, packages::KERNEL], yes)?;
            let to = to.unwrap_or_else(directory);
            let mut command = Command::new(install::release_binary()?);
            command.args(["kernel", "build", "--to"]).arg(to);
            if let Some(arch) = arch {
                command.args(["--arch", &arch]);
            }
            process::run(&mut command)?;
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
        let mut build = Command::new(install::release_binary()?);
        build.args(["kernel", "build", "--to"]).arg(directory());
        process::run(&mut build).context("the kernel cannot be built")?;
    }
    Ok(kernel)
}
