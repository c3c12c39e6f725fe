//! `microagent kernel`.

mod build;
mod inspect;
mod install;
mod list;
mod rm;
mod use_;
mod verify;

use clap::Subcommand;
use microagent::{Error, KernelRecord};

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// Install a kernel: the distribution's, this host's own, one of a signed repository, or a file
    Install(install::InstallArgs),
    /// Build a kernel that is tuned for microVMs, and install it
    ///
    /// Linux comes from the distribution's source package, its configuration with microagent. The compiler
    /// and the tools are the distribution's, too: gcc, make, flex, bison, bc, xz-utils, libelf-dev.
    Build(build::BuildArgs),
    /// List the installed kernels
    #[command(alias = "ls")]
    List,
    /// Show an installed kernel
    Inspect(inspect::InspectArgs),
    /// Choose the kernel that boots when none is named
    ///
    /// Workspaces that exist keep the kernel they were made with.
    Use(use_::UseArgs),
    /// Read kernels again and compare them with what was installed
    ///
    /// Exits with 1 if one differs, and names each file that does: remove that kernel and install it
    /// again. A kernel is "vouched for" when the distribution's signed lists or a digest that was
    /// demanded said what it had to be; a file that was taken as it was is only the same file still.
    Verify(verify::VerifyArgs),
    /// Remove kernels
    #[command(alias = "remove", alias = "delete")]
    Rm(rm::RmArgs),
}

pub(crate) fn run(command: KernelCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        KernelCommand::Install(args) => install::run(args, globals, screen),
        KernelCommand::Build(args) => build::run(args, globals, screen),
        KernelCommand::List => list::run(globals, screen),
        KernelCommand::Inspect(args) => inspect::run(&args, globals, screen),
        KernelCommand::Use(args) => use_::run(&args, globals, screen),
        KernelCommand::Verify(args) => verify::run(&args, globals, screen),
        KernelCommand::Rm(args) => rm::run(&args, globals, screen),
    }
}

/// One kernel in a line.
fn line(record: &KernelRecord) -> String {
    format!("{}  {}\n", record.id, record.release)
}
