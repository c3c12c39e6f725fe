//! `microagent images`.

mod import;
mod inspect;
mod list;
mod outdated;
mod pull;
mod rm;

use clap::Subcommand;
use microagent::{Error, ImageRecord};

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Pull images from their registries
    Pull(pull::PullArgs),
    /// Bring in a root file system, an OCI archive or layout, or what `docker save` writes
    Import(import::ImportArgs),
    /// List the images in the store
    #[command(alias = "ls")]
    List,
    /// Ask the registries whether the images in the store are what their tags stand for now
    Outdated(outdated::OutdatedArgs),
    /// Show an image and its configuration
    Inspect(inspect::InspectArgs),
    /// Remove images
    #[command(alias = "remove", alias = "delete")]
    Rm(rm::RmArgs),
}

pub(crate) fn run(command: ImagesCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        ImagesCommand::Pull(args) => pull::run(&args, globals, screen),
        ImagesCommand::Import(args) => import::run(args, globals, screen),
        ImagesCommand::Outdated(args) => outdated::run(&args, globals, screen),
        ImagesCommand::List => list::run(globals, screen),
        ImagesCommand::Inspect(args) => inspect::run(&args, globals, screen),
        ImagesCommand::Rm(args) => rm::run(&args, globals, screen),
    }
}

/// One image in a line.
fn line(record: &ImageRecord) -> String {
    format!("{}  {}\n", record.reference.familiar(), record.digest)
}
