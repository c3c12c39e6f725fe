//! `cargo xtask conformance`: the suite of `microagent-hypervisor` for one driver, or for all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

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

/// The kernel that tests of KVM boot where it boots no ordinary one.
pub(crate) const KERNEL: &str = "MICROAGENT_CONFORMANCE_KERNEL";

/// Where such a kernel may lie beside the checkout, compressed by `xz`. It is no part of it: it is made for the
/// KVM of one kind of machine, and its licence is Linux's.
const BESIDE: &str = "../shared/kvm-test-kernel";

/// The kernel that somebody named, or the one beside the checkout; unpacked.
pub(crate) fn kernel() -> anyhow::Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os(KERNEL) {
        return Ok(Some(named.into()));
    }
    let Ok(beside) = fs::read_dir(process::root().join(BESIDE)) else {
        return Ok(None);
    };
    let packed = beside
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "xz"));
    let Some(packed) = packed else {
        return Ok(None);
    };
    let kernel = process::target_dir().join("kvm-test-kernel");
    let bytes = process::output(Command::new("xz").arg("-dc").arg(&packed))?.stdout;
    fs::write(&kernel, bytes).with_context(|| format!("cannot write {}", kernel.display()))?;
    Ok(Some(kernel))
}

/// Runs it; what cannot be run here is told with its reason, and is no failure.
pub(crate) fn run(yes: bool, suite: Option<Suite>, kernel: Option<&Path>) -> anyhow::Result<()> {
    packages::install(&[packages::RUN, packages::TEST, packages::KERNEL], yes)?;
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
    let named = kernel.map(|file| {
        file.canonicalize()
            .with_context(|| format!("the kernel {}", file.display()))
    });
    if let Some(kernel) = named.map_or_else(self::kernel, |named| named.map(Some))? {
        command.env(KERNEL, kernel);
    }
    process::run(&mut command)
}
