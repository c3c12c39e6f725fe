//! `microagent stop`.

use std::time::Duration;

use clap::Args;
use microagent::{Error, Microagent};

use crate::{
    cli::Globals,
    each::{Names, control_line, each},
    options::duration,
    output::Screen,
    surroundings,
};

/// Shuts workspaces down as `halt` does, with less patience: what has not ended in time is ended by
/// force.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    names: Names,
    /// How long the workload may take to end: SECONDS, or a number with ms, s, m or h
    #[arg(
        long,
        visible_alias = "timeout",
        value_name = "TIME",
        value_parser = duration,
        default_value = "2s"
    )]
    grace: Duration,
}

pub(crate) fn run(args: &StopArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let stop = |name: &str| workspaces.open(name)?.stop(args.grace);
    Ok(each(&args.names.names, screen, stop, control_line))
}
