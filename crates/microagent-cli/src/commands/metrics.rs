//! `microagent metrics`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Metrics, Microagent};

use crate::{cli::Globals, completion, output::Screen, surroundings};

const EXAMPLES: &str = "\
Examples:
  microagent metrics
  microagent metrics web db
  microagent metrics > microagent.prom.new && mv microagent.prom.new microagent.prom";

/// Prints what workspaces cost as Prometheus reads it: a state for each workspace, and for each machine
/// processor time, memory, disk traffic, sessions and connections.
///
/// No daemon serves this: let a timer write it to a file that an exporter reads; by a second name, as above,
/// the exporter never reads half of it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MetricsArgs {
    /// The workspaces [default: all of them]
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    names: Vec<String>,
}

pub(crate) fn run(args: &MetricsArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let metrics = microagent.workspaces().metrics(&args.names)?;
    screen.result(&metrics, Metrics::text);
    Ok(0)
}
