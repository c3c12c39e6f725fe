//! `microagent quarantine`.

use clap::Args;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    each::{Names, control_line, each},
    output::Screen,
    surroundings,
};

/// Contains workspaces: freezes them and cuts every connection. Memory, disks and history stay as
/// evidence; from there they can only be ended.
#[derive(Debug, Args)]
pub(crate) struct QuarantineArgs {
    #[command(flatten)]
    names: Names,
}

pub(crate) fn run(args: &QuarantineArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let quarantine = |name: &str| workspaces.open(name)?.quarantine();
    Ok(each(&args.names.names, screen, quarantine, control_line))
}
