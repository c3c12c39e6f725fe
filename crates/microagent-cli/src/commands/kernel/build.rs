//! `microagent kernel build`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, ValueEnum};
use microagent::{
    Error, KERNEL_SOURCE_PACKAGE, KernelArchitecture, KernelBuildOptions, KernelSource, Microagent,
};
use serde_json::json;

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The distribution's package with Linux's source
    #[arg(long, value_name = "NAME", default_value = KERNEL_SOURCE_PACKAGE)]
    package: String,
    /// Write kernel and configuration here, and install nothing
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// What the kernel is for [default: this host's]; another takes its cross compiler
    #[arg(long, value_enum, value_name = "ARCHITECTURE")]
    arch: Option<Arch>,
    /// How many files to compile at a time [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Where to build; it takes 4 GB, which are given back [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Only look whether Linux takes every line of the configuration
    #[arg(long, conflicts_with = "to")]
    check: bool,
    /// Boot this one from now on when none is named
    #[arg(long, conflicts_with_all = ["to", "check"])]
    default: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Arch {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

pub(crate) fn run(args: BuildArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let directory = args.directory.unwrap_or_else(std::env::temp_dir);
    let jobs = args
        .jobs
        .or_else(|| std::thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN);
    let mut options = KernelBuildOptions::new(surroundings::absolute(&directory)?)
        .package(args.package)
        .jobs(jobs);
    if let Some(arch) = args.arch {
        options = options.architecture(match arch {
            Arch::X86_64 => KernelArchitecture::X86_64,
            Arch::Aarch64 => KernelArchitecture::Aarch64,
        });
    }
    let kernels = microagent.kernels();
    let progress = Progress::new(screen);
    let mut watch = |step| progress.kernel(&step);
    if args.check {
        let checked = kernels.check_configuration(&options, &mut watch);
        progress.clear();
        checked?;
        screen.result(&json!({ "ok": true }), |_| {
            "Linux takes every line of the configuration\n".to_owned()
        });
    } else if let Some(to) = args.to {
        let built = kernels.build(&options, &surroundings::absolute(&to)?, &mut watch);
        progress.clear();
        let built = built?;
        let value = json!({
            "kernel": built.kernel, "config": built.config,
            "release": built.release, "sha256": built.sha256,
        });
        screen.result(&value, |_| format!("{}\n", built.kernel.display()));
    } else {
        let installed = kernels.install(&KernelSource::Build(options), &mut watch);
        progress.clear();
        let record = installed?;
        if args.default {
            kernels.set_default(&record.id)?;
        }
        screen.result(&record, super::line);
    }
    Ok(0)
}
