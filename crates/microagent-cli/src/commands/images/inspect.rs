//! `microagent images inspect`.

use clap::Args;
use microagent::{Error, ImageDetails, Microagent};

use crate::{
    cli::Globals,
    output::{Screen, size},
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image: its reference, or its digest or the beginning of it
    image: String,
}

pub(crate) fn run(args: &InspectArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let details = microagent.images().inspect(&args.image)?;
    screen.result(&details, text);
    Ok(0)
}

fn text(details: &ImageDetails) -> String {
    let (record, config) = (&details.record, &details.image);
    let joined = |words: &[String]| words.join(" ");
    let rows = [
        ("image", record.reference.canonical()),
        ("digest", record.digest.to_string()),
        ("platform", record.platform.to_string()),
        ("size", size(record.size_bytes)),
        ("layers", record.layers.len().to_string()),
        ("entrypoint", joined(&config.entrypoint)),
        ("command", joined(&config.cmd)),
        ("environment", config.env.join("\n             ")),
        ("user", config.user.clone().unwrap_or_default()),
        ("directory", config.working_dir.clone().unwrap_or_default()),
        (
            "stop signal",
            config.stop_signal.clone().unwrap_or_default(),
        ),
    ];
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:11}  {value}\n"))
        .collect()
}
