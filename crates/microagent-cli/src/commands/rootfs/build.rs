//! `microagent rootfs build`.

use std::path::PathBuf;

use clap::Args;
use microagent::{Error, Mebibytes, Microagent, Platform, PullPolicy, Reference, RootfsOptions};

use crate::{
    cli::Globals,
    output::{Screen, size},
    progress::Progress,
    surroundings,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent rootfs build debian:12 --allow-mutable -o debian.ext4")]
pub(crate) struct BuildArgs {
    /// The image: NAME@sha256:DIGEST; with --allow-mutable also NAME[:TAG]
    image: Reference,
    /// The file; one that is there is replaced when the new one is complete
    #[arg(long, short, value_name = "FILE")]
    output_file: PathBuf,
    /// How large the disk is, with a journal and to be written to [default: as small as it can be, read-only]
    #[arg(long, value_name = "SIZE")]
    size: Option<Mebibytes>,
    /// Take a name that may stand for another image tomorrow
    #[arg(long)]
    allow_mutable: bool,
    /// Which of a multi-platform image's images [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// When the image is asked of its registry: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

pub(crate) fn run(args: BuildArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let mut options = RootfsOptions::new();
    options.size = args.size;
    options.allow_mutable = args.allow_mutable;
    options.platform = args.platform;
    options.pull = args.pull;
    let path = surroundings::absolute(&args.output_file)?;
    let progress = Progress::new(screen);
    let name = args.image.to_string();
    let built = microagent
        .images()
        .build_rootfs(&args.image, &options, &path, &|event| {
            screen.event(&name, &event);
            progress.image(&event);
        });
    progress.clear();
    screen.result(&built?, |built| {
        format!(
            "{}: {}  {} ({})\n",
            built.disk.path.display(),
            built.reference.familiar(),
            built.disk.sha256,
            size(built.disk.size_bytes)
        )
    });
    Ok(0)
}
