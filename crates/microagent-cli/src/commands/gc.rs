//! `microagent gc`.

use clap::Args;
use microagent::{Error, LeftoverKind, Microagent};
use serde_json::json;

use crate::{
    cli::Globals,
    output::{Screen, size},
    surroundings,
};

/// Removes what killed programs left behind: half-made and half-deleted workspaces, and the sockets
/// of machines that are gone. Never anything of a workspace.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &GcArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let leftovers = microagent.workspaces().collect_garbage(args.dry_run)?;
    let bytes: u64 = leftovers.iter().map(|leftover| leftover.bytes).sum();
    let value = json!({
        "dry_run": args.dry_run,
        "leftovers": leftovers,
        "reclaimed_bytes": bytes,
    });
    screen.result(&value, |_| {
        let mut text = String::new();
        for leftover in &leftovers {
            let what = match leftover.what {
                LeftoverKind::Deleted => "half deleted",
                LeftoverKind::Abandoned => "abandoned",
                LeftoverKind::Sockets => "sockets",
            };
            text.push_str(&format!("{}  {what}\n", leftover.path.display()));
        }
        let verb = match args.dry_run {
            true => "would be reclaimed",
            false => "reclaimed",
        };
        text + &format!("{} {verb}\n", size(bytes))
    });
    Ok(0)
}
