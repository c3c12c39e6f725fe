//! `microagent images import`.

use std::path::PathBuf;

use clap::Args;
use microagent::{Error, ImportOptions, Microagent, Platform, Reference};

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images import --name debian:12 rootfs.tar.gz
  microagent images import debian.oci.tar")]
pub(crate) struct ImportArgs {
    /// A root file system's tar (plain, gzip or zstd), an OCI archive or layout directory, or the
    /// archive of `docker save`
    path: PathBuf,
    /// The name to store it under; a root file system needs one, an archive may have its own
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<Reference>,
    /// Which of the images in an archive of several, as the archive names it
    #[arg(long, value_name = "NAME")]
    select: Option<String>,
    /// What a root file system is for, or which image of an archive [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(args: ImportArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = ImportOptions::new();
    options.reference = args.name;
    options.select = args.select;
    if let Some(platform) = args.platform {
        options = options.platform(platform);
    }
    let progress = Progress::new(screen);
    let path = surroundings::absolute(&args.path)?;
    let imported = microagent
        .images()
        .import(&path, &options, &|event| progress.image(&event));
    progress.clear();
    screen.result(&imported?, |imported| super::line(&imported.image));
    Ok(0)
}
