//! `microagent perf steady`.

use clap::Args;
use microagent::{Error, Microagent, perf::SteadyOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots a machine that does nothing, and watches what its supervisor and its VMM go on doing: how often a
/// thread of theirs wakes in a second, and how much of one processor they take. Each iteration is a second.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SteadyArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &SteadyArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = SteadyOptions::new(args.machine.run_options());
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().steady(&options))
}
