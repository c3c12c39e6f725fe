//! `microagent perf boot`.

use clap::Args;
use microagent::{Error, Microagent, perf::BootOptions};

use super::shared::{CommandArgs, EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots a machine again and again and tells where the time goes.
///
/// `total` is from the call until the guest has told how the command ended. Its parts: `prepare`
/// (image, kernel and workspace), `spawn` (the supervisor), `vmm` (until the VMM runs), `kernel` (until
/// the guest agent says hello), `agent` (until it is ready) and `workload`. `teardown`, until nothing is
/// left, comes after that.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct BootArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    run: CommandArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &BootArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let run = args.machine.run_options().command(&args.run.command);
    let mut options = BootOptions::new(run);
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().boot(&options))
}
