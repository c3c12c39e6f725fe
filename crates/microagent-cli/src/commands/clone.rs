//! `microagent clone`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent};
use serde_json::json;

use crate::{cli::Globals, completion, output::Screen, surroundings};

/// Makes a second workspace of what one is made of and has written. Only its own disk is copied;
/// name, history and result are the new one's own. The old one must not be live.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent clone tools tools-2")]
pub(crate) struct CloneArgs {
    /// The workspace to copy
    #[arg(value_name = "OLD", add = ArgValueCompleter::new(completion::workspaces))]
    old: String,
    /// The name of the new one
    #[arg(value_name = "NEW")]
    new: String,
}

pub(crate) fn run(args: &CloneArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let old = microagent.workspaces().open(&args.old)?;
    let new = old.clone_as(&args.new)?;
    let value = json!({ "workspace": new, "cloned_from": old.name() });
    screen.result(&value, |_| format!("{new}\n"));
    Ok(0)
}
