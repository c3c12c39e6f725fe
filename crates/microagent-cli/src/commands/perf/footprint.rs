//! `microagent perf footprint`.

use clap::Args;
use microagent::{Error, Microagent, perf::FootprintOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots machines that do nothing, one after the other, and looks at what each takes on the host a
/// second later.
///
/// `rss` is what is resident of the supervisor and the VMM; in `pss` what is shared with other processes
/// counts by its share.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct FootprintArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &FootprintArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = FootprintOptions::new(args.machine.run_options());
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().footprint(&options))
}
