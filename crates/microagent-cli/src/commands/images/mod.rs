//! `microagent images`.

mod export;
mod history;
mod import;
mod inspect;
mod list;
mod load;
mod outdated;
pub(crate) mod prune;
mod pull;
pub(crate) mod push;
mod rm;
mod tag;
mod tree;
mod untag;
mod verify;

use clap::Subcommand;
use microagent::{Error, ImageRecord};

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Pull images from their registries
    Pull(pull::PullArgs),
    /// Bring in a root file system, an OCI archive or layout, or what `docker save` writes
    Import(import::ImportArgs),
    /// Write images to a file: an OCI archive, what `docker load` reads, or a root file system
    Export(export::ExportArgs),
    /// Write images as `docker save` does
    Save(export::SaveArgs),
    /// Bring in every image of an archive, as `docker load` does
    Load(load::LoadArgs),
    /// Send an image to a registry
    Push(push::PushArgs),
    /// List the images in the store, with what they take
    #[command(alias = "ls")]
    List(list::ListArgs),
    /// Ask the registries whether the images in the store are what their tags stand for now
    Outdated(outdated::OutdatedArgs),
    /// Show an image, its configuration and where it comes from
    Inspect(inspect::InspectArgs),
    /// Remove images
    #[command(alias = "remove", alias = "delete")]
    Rm(rm::RmArgs),
    /// Give an image one more name
    Tag(tag::TagArgs),
    /// Take a name away and keep the image
    Untag(untag::UntagArgs),
    /// Show how an image came to be
    History(history::HistoryArgs),
    /// Show images with their layers, and what they share
    Tree(tree::TreeArgs),
    /// Read what is stored again, and name what is damaged
    Verify(verify::VerifyArgs),
    /// Take away what nobody needs
    Prune(prune::PruneArgs),
}

pub(crate) fn run(command: ImagesCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        ImagesCommand::Pull(args) => pull::run(&args, globals, screen),
        ImagesCommand::Import(args) => import::run(args, globals, screen),
        ImagesCommand::Outdated(args) => outdated::run(&args, globals, screen),
        ImagesCommand::Export(args) => export::run(args, globals, screen),
        ImagesCommand::Save(args) => export::run(args.into(), globals, screen),
        ImagesCommand::Load(args) => load::run(args, globals, screen),
        ImagesCommand::Push(args) => push::run(args, globals, screen),
        ImagesCommand::List(args) => list::run(&args, globals, screen),
        ImagesCommand::Inspect(args) => inspect::run(&args, globals, screen),
        ImagesCommand::Rm(args) => rm::run(&args, globals, screen),
        ImagesCommand::Tag(args) => tag::run(&args, globals, screen),
        ImagesCommand::Untag(args) => untag::run(&args, globals, screen),
        ImagesCommand::History(args) => history::run(&args, globals, screen),
        ImagesCommand::Tree(args) => tree::run(&args, globals, screen),
        ImagesCommand::Verify(args) => verify::run(&args, globals, screen),
        ImagesCommand::Prune(args) => prune::run(&args, globals, screen),
    }
}

/// One image in a line.
pub(crate) fn line(record: &ImageRecord) -> String {
    format!("{}  {}\n", record.reference.familiar(), record.digest)
}
