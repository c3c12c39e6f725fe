//! `microagent pause`.

use clap::Args;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    each::{Names, control_line, each},
    output::Screen,
    surroundings,
};

/// Freezes workspaces in place. Memory, disks and connections stay.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    names: Names,
}

pub(crate) fn run(args: &PauseArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let pause = |name: &str| workspaces.open(name)?.pause();
    Ok(each(&args.names.names, screen, pause, control_line))
}
