//! `microagent gc`.

use clap::Args;
use microagent::{Error, Leftover, LeftoverKind, Microagent};
use serde_json::json;

use crate::{
    cli::Globals,
    output::{Screen, size},
    surroundings,
};

const RELATED: &str = "\
`microagent prune` does this, and takes away what nobody needs of images as well (`images prune`).";

/// Removes what killed programs left behind: half-made and half-deleted workspaces, and the sockets
/// of machines that are gone. Never anything of a workspace, and nothing of images.
#[derive(Debug, Args)]
#[command(after_help = RELATED)]
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
        let verb = match args.dry_run {
            true => "would be reclaimed",
            false => "reclaimed",
        };
        text(&leftovers) + &format!("{} {verb}\n", size(bytes))
    });
    Ok(0)
}

/// What was left behind, a line each.
pub(super) fn text(leftovers: &[Leftover]) -> String {
    let line = |leftover: &Leftover| {
        let what = match leftover.what {
            LeftoverKind::Deleted => "half deleted",
            LeftoverKind::Abandoned => "abandoned",
            LeftoverKind::Sockets => "sockets",
        };
        format!("{}  {what}\n", leftover.path.display())
    };
    leftovers.iter().map(line).collect()
}
