//! `microagent images verify`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{CheckedImage, Error, Microagent};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    completion,
    output::{Screen, size},
    progress::Progress,
    surroundings,
};

/// Reads every blob and disk of images again and names each that is not what was recorded. Exits with 1
/// if there is one: remove the images it names and pull or import them again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images verify --all")]
pub(crate) struct VerifyArgs {
    /// The images: references, or digests or the beginnings of them
    #[arg(required_unless_present = "all", add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
    /// Every image in the store
    #[arg(long, conflicts_with = "images")]
    all: bool,
}

pub(crate) fn run(args: &VerifyArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let progress = Progress::new(screen);
    let checked = microagent
        .images()
        .verify(&args.images, &|event| progress.image(&event));
    progress.clear();
    let checked = checked?;
    screen.result(&checked, |checked| {
        let images: String = checked.images.iter().map(text).collect();
        images + &format!("{} read\n", size(checked.bytes))
    });
    Ok(if checked.ok { 0 } else { EXIT_FAILURE })
}

fn text(image: &CheckedImage) -> String {
    if image.ok {
        return format!("{}  ok\n", image.reference);
    }
    let mut text = format!("{}  damaged\n", image.reference);
    for it in &image.divergence {
        text.push_str(&format!(
            "  {} is {}, and {} was recorded: {}\n",
            it.artifact,
            it.actual,
            it.expected,
            it.path.display()
        ));
    }
    text
}
