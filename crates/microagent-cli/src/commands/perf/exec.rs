//! `microagent perf exec`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, ExecOptions, Microagent, perf::ExecBenchmark};

use super::shared::{CommandArgs, EXIT_CODES, MeasureArgs};
use crate::{cli::Globals, completion, output::Screen, surroundings};

/// Runs a command again and again in a workspace that runs.
///
/// `total` is from the call of the library until it knows how the command ended: `start` until it knows
/// that the command runs, and `command` the rest. A program that ends at once says what is ours.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ExecArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    #[command(flatten)]
    run: CommandArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &ExecArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = ExecBenchmark::new(&args.name, ExecOptions::new(&args.run.command));
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().exec(&options))
}
