//! `microagent images inspect`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, ImageDetails, Microagent, Timestamp};

use crate::{
    cli::Globals,
    completion,
    output::{Screen, short, size},
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image: its reference, or its digest or the beginning of it
    #[arg(add = ArgValueCompleter::new(completion::images))]
    image: String,
}

pub(crate) fn run(args: &InspectArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let details = microagent.images().inspect(&args.image)?;
    screen.result(&details, text);
    Ok(0)
}

fn text(details: &ImageDetails) -> String {
    let (record, config, from) = (&details.record, &details.image, &details.provenance);
    let joined = |words: &[String]| words.join(" ");
    let lines = |lines: Vec<String>| lines.join("\n             ");
    let signature = match &from.signature {
        None => "not checked".to_owned(),
        Some(checked) => format!(
            "of {} checked with the key {} at {}",
            checked.signed,
            short(&checked.key.to_string()),
            instant(checked.checked_at)
        ),
    };
    let layers = from.layers.iter().map(|layer| {
        let unpacked = layer.diff_id.map(|it| short(&it.to_string()).to_owned());
        format!(
            "{}  {}  (unpacked {})",
            short(&layer.digest.to_string()),
            size(layer.size_bytes),
            unpacked.unwrap_or_else(|| "unknown".to_owned())
        )
    });
    let rows = [
        ("image", record.reference.canonical()),
        ("came as", from.reference.canonical()),
        ("resolved to", from.resolved_digest.to_string()),
        ("digest", record.digest.to_string()),
        ("platform", record.platform.to_string()),
        (
            "from",
            from.registry
                .clone()
                .unwrap_or_else(|| "a file or this host".to_owned()),
        ),
        ("at", instant(from.at)),
        ("signature", signature),
        ("size", size(record.size_bytes)),
        ("layers", lines(layers.collect())),
        (
            "disk",
            from.disk_format.map_or_else(
                || "not built yet".to_owned(),
                |format| {
                    let maker = from.converter.as_deref().unwrap_or("an earlier version");
                    format!("format {format}, by {maker}")
                },
            ),
        ),
        ("entrypoint", joined(&config.entrypoint)),
        ("command", joined(&config.cmd)),
        ("environment", lines(config.env.clone())),
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

fn instant(at: std::time::SystemTime) -> String {
    Timestamp(at).to_string()
}
