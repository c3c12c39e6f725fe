//! `microagent halt`.

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

/// Shuts workspaces down cleanly: the workload is asked to end by its stop signal, then everything
/// is written, unmounted and powered off. One that does not end in time stays as it is.
#[derive(Debug, Args)]
pub(crate) struct HaltArgs {
    #[command(flatten)]
    names: Names,
    /// How long the workload may take to end: SECONDS, or a number with ms, s, m or h
    #[arg(
        long,
        visible_alias = "timeout",
        value_name = "TIME",
        value_parser = duration,
        default_value = "10s"
    )]
    grace: Duration,
}

pub(crate) fn run(args: &HaltArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let halt = |name: &str| workspaces.open(name)?.halt(args.grace);
    Ok(each(&args.names.names, screen, halt, control_line))
}
