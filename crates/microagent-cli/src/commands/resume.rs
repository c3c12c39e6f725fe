//! `microagent resume`.

use clap::Args;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    each::{Names, control_line, each},
    output::Screen,
    surroundings,
};

/// Thaws paused workspaces, and sets their clocks.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    names: Names,
}

pub(crate) fn run(args: &ResumeArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let resume = |name: &str| workspaces.open(name)?.resume();
    Ok(each(&args.names.names, screen, resume, control_line))
}
