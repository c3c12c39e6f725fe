//! `microagent images load`.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use microagent::{Error, ImageRecord, ImportOptions, Microagent, Platform};
use serde::Serialize;

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images load -i debian.oci.tar")]
pub(crate) struct LoadArgs {
    /// The archive [default: standard input]
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Which of a multi-platform image's images [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

#[derive(Serialize)]
struct List {
    images: Vec<ImageRecord>,
}

pub(crate) fn run(args: LoadArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = ImportOptions::new();
    if let Some(platform) = args.platform {
        options = options.platform(platform);
    }
    let file = args
        .input
        .filter(|path| path.as_os_str() != OsStr::new("-"));
    if file.is_none() && io::stdin().is_terminal() {
        return Err(Error::Invalid {
            option: "--input",
            reason: "an archive does not come from a terminal; name a file with -i".to_owned(),
        });
    }
    let progress = Progress::new(screen);
    let hear = |event| progress.image(&event);
    let images = microagent.images();
    let loaded = match file {
        Some(path) => images.load(&surroundings::absolute(&path)?, &options, &hear),
        None => images.load_stream(&mut io::stdin(), &options, &hear),
    };
    progress.clear();
    let list = List { images: loaded? };
    screen.result(&list, |list| list.images.iter().map(super::line).collect());
    Ok(0)
}
