//! Everything a contributor runs: the demo, the tests, the benchmarks, the installation.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod arm64;
mod bench;
mod bench_check;
mod bench_density;
mod bench_exec;
mod bench_files;
mod bench_first;
mod bench_floor;
mod bench_image;
mod bench_net;
mod bench_pull;
mod bench_run;
mod bench_workspace;
mod conformance;
mod corpus;
mod debian;
mod demo;
mod fuzz;
mod install;
mod kernel;
mod packages;
mod process;
mod targets;
mod test;
mod test_beside;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Demo, tests, benchmarks and installation of microagent"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build, and run a real Debian image in its own microVM.
    Demo {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Install what the tests need and run them all.
    Test {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
        /// Only these stages (fmt, clippy, docs, unit, vm, targets, fuzz); all by default.
        stages: Vec<String>,
    },
    /// Measure what SPECIFICATION.md promises; prints medians of interleaved runs.
    Bench {
        /// Only benchmarks whose name has this text.
        filter: Option<String>,
        /// How many runs of each.
        #[arg(long, default_value_t = 9)]
        runs: usize,
        /// Begin no further run of a benchmark after so many seconds; each is run once in any case.
        #[arg(long, value_name = "SECONDS")]
        limit: Option<u64>,
        /// How many machines for `density`; 20 by default, fewer where memory is short.
        #[arg(long)]
        machines: Option<usize>,
        /// Save ratios and sizes in this file, beside those of other benchmarks in it.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        /// Fail if a ratio or a size is more than a tenth worse than in this file.
        #[arg(long, value_name = "FILE")]
        check: Option<PathBuf>,
    },
    /// Compare images of many tools, and random stacks of layers, with what umoci unpacks.
    Corpus {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
        /// How many random stacks.
        #[arg(long, default_value_t = 2000)]
        stacks: usize,
        /// The seed they begin with; a run says which was its last.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Prove on this host what a driver promises: every part of the suite, on real machines.
    Conformance {
        /// The backend: qemu (software emulation), qemu-kvm or firecracker; all by default.
        #[arg(long)]
        backend: Option<conformance::Suite>,
        /// A kernel with everything built in (ELF), for a host whose KVM boots no ordinary one.
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Check the types of every crate for macOS, Windows and Linux on arm64.
    CheckTargets {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
        /// Only this target.
        target: Option<String>,
    },
    /// Build everything for arm64, and run a guest: translated and emulated on a host of another kind.
    Arm64 {
        /// Install packages without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Run every fuzz target.
    Fuzz {
        /// Only this target.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Build and try the kernel that is tuned for microVMs.
    Kernel {
        #[command(subcommand)]
        task: kernel::KernelTask,
    },
    /// Build and install the one executable and its symlink.
    Install {
        /// Where to: `DIR/bin/microagent`.
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Demo { yes } => demo::run(yes)?,
        Task::Test { yes, stages } => test::run(yes, &stages)?,
        Task::Bench {
            filter,
            runs,
            limit,
            machines,
            save,
            check,
        } => {
            let limit = limit.map(Duration::from_secs);
            let filter = filter.as_deref().unwrap_or_default();
            return bench::run(
                filter,
                runs,
                machines,
                limit,
                save.as_deref(),
                check.as_deref(),
            );
        }
        Task::Corpus { yes, stacks, seed } => corpus::run(yes, stacks, seed)?,
        Task::Conformance {
            backend,
            kernel,
            yes,
        } => conformance::run(yes, backend, kernel.as_deref())?,
        Task::CheckTargets { yes, target } => targets::run(yes, target.as_deref())?,
        Task::Arm64 { yes } => arm64::run(yes)?,
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds)?,
        Task::Kernel { task } => return kernel::run(task),
        Task::Install { prefix } => install::run(&prefix)?,
    }
    Ok(ExitCode::SUCCESS)
}
