//! `microagent images tag`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    completion,
    output::{Screen, short},
    surroundings,
};

/// Gives an image one more name. Nothing is copied; a name that stood for another image moves.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent images tag debian:12 base:1")]
pub(crate) struct TagArgs {
    /// The image: a reference, or a digest or the beginning of it
    #[arg(add = ArgValueCompleter::new(completion::images))]
    source: String,
    /// The new name: NAME[:TAG]
    #[arg(add = ArgValueCompleter::new(completion::images))]
    target: String,
}

pub(crate) fn run(args: &TagArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let tagged = microagent.images().tag(&args.source, &args.target)?;
    if let Some(old) = &tagged.replaced {
        screen.announce(&format!(
            "{} stood for {} until now.",
            tagged.record.reference,
            short(&old.to_string())
        ));
    }
    screen.result(&tagged, |tagged| super::line(&tagged.record));
    Ok(0)
}
