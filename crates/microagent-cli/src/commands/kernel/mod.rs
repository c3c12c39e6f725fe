//! `microagent kernel`.

mod inspect;
mod install;
mod list;
mod rm;

use clap::Subcommand;
use microagent::{Error, KernelRecord};

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// Install a kernel: the distribution's, this host's own, or a file
    Install(install::InstallArgs),
    /// List the installed kernels
    #[command(alias = "ls")]
    List,
    /// Show an installed kernel
    Inspect(inspect::InspectArgs),
    /// Remove kernels
    #[command(alias = "remove", alias = "delete")]
    Rm(rm::RmArgs),
}

pub(crate) fn run(command: KernelCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        KernelCommand::Install(args) => install::run(args, globals, screen),
        KernelCommand::List => list::run(globals, screen),
        KernelCommand::Inspect(args) => inspect::run(&args, globals, screen),
        KernelCommand::Rm(args) => rm::run(&args, globals, screen),
    }
}

/// One kernel in a line.
fn line(record: &KernelRecord) -> String {
    format!("{}  {}\n", record.id, record.release)
}
