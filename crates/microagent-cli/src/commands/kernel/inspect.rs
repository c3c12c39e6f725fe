//! `microagent kernel inspect`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, KernelRecord, Microagent};

use crate::{
    cli::Globals,
    completion,
    output::{Screen, size},
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The kernel's id, as `kernel list` shows it
    #[arg(add = ArgValueCompleter::new(completion::kernels))]
    kernel: String,
}

pub(crate) fn run(args: &InspectArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let record = microagent.kernels().inspect(&args.kernel)?;
    screen.result(&record, text);
    Ok(0)
}

fn text(record: &KernelRecord) -> String {
    let modules: Vec<_> = record
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .collect();
    let rows = [
        ("kernel", record.id.clone()),
        ("release", record.release.clone()),
        ("version", record.version.clone()),
        ("sha256", record.sha256.clone()),
        ("size", size(record.size)),
        ("from", super::list::provenance(&record.provenance)),
        ("modules", modules.join(" ")),
        ("built in", record.built_in.join(" ")),
        ("absent", record.absent.join(" ")),
    ];
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:8}  {value}\n"))
        .collect()
}
