//! `cargo xtask conformance`: the suite of `microagent-hypervisor` for one driver, or for all.

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::{packages, process};

/// A driver, by the name it has here.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Suite {
    Qemu,
    QemuKvm,
    Firecracker,
}

impl Suite {
    fn backend(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-tcg",
            Self::QemuKvm => "qemu-kvm",
            Self::Firecracker => "firecracker",
        }
    }
}

/// Runs it; what cannot be run here is told with its reason, and is no failure.
pub(crate) fn run(yes: bool, suite: Option<Suite>, kernel: Option<&Path>) -> anyhow::Result<()> {
    packages::install(&[packages::RUN, packages::TEST], yes)?;
    let mut command = process::cargo();
    command
        .args(["test", "--locked", "--package", "microagent-hypervisor"])
        .args(["--test", "conformance"])
        .env(
            "MICROAGENT_TEST_CACHE",
            process::target_dir().join("test-cache"),
        );
    if let Some(suite) = suite {
        command.env("MICROAGENT_CONFORMANCE_BACKEND", suite.backend());
    }
    if let Some(kernel) = kernel {
        let kernel = kernel
            .canonicalize()
            .with_context(|| format!("the kernel {}", kernel.display()))?;
        command.env("MICROAGENT_CONFORMANCE_KERNEL", kernel);
    }
    process::run(&mut command)
}
