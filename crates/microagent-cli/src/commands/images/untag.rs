//! `microagent images untag`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent};

use crate::{cli::Globals, completion, output::Screen, surroundings};

/// Takes a name away and keeps the image: under its other names, or under its digest if it has none.
/// `images rm` removes the image.
#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// The name: NAME[:TAG]
    #[arg(add = ArgValueCompleter::new(completion::images))]
    reference: String,
}

pub(crate) fn run(args: &UntagArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let untagged = microagent.images().untag(&args.reference)?;
    screen.result(&untagged, |untagged| {
        let kept = untagged.kept_as.iter();
        let kept: String = kept.map(|name| format!("kept as {name}\n")).collect();
        format!("{}\n{kept}", untagged.untagged)
    });
    Ok(0)
}
