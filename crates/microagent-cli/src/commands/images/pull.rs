//! `microagent images pull`.

use clap::Args;
use microagent::{Error, Microagent, Platform};

use crate::{cli::Globals, output::Screen, progress::Progress, surroundings};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image: NAME[:TAG] or NAME@sha256:DIGEST, with the registry in front
    image: String,
    /// Which of a multi-platform image's images, such as linux/amd64 [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

pub(crate) fn run(args: &PullArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let progress = Progress::new(screen);
    let pulled = microagent
        .images()
        .pull(&args.image, args.platform.clone(), &|event| {
            progress.image(&event);
        });
    progress.clear();
    screen.result(&pulled?, super::line);
    Ok(0)
}
