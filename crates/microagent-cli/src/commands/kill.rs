//! `microagent kill`.

use clap::Args;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    each::{Names, control_line, each},
    output::Screen,
    surroundings,
};

/// Ends workspaces at once. Nothing is written any more; a quarantined one can be ended so.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    names: Names,
}

pub(crate) fn run(args: &KillArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let kill = |name: &str| workspaces.open(name)?.kill();
    Ok(each(&args.names.names, screen, kill, control_line))
}
