//! `microagent rootfs`.

mod build;

use clap::Subcommand;
use microagent::Error;

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum RootfsCommand {
    /// Write the root file system of an image as one ext4 file
    Build(build::BuildArgs),
}

pub(crate) fn run(command: RootfsCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        RootfsCommand::Build(args) => build::run(args, globals, screen),
    }
}
