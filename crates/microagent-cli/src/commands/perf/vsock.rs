//! `microagent perf vsock`.

use clap::Args;
use microagent::{Error, Microagent, perf::VsockOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots a machine that does nothing else, and measures the way from its agent to this program and back by
/// the guest link: a `round_trip` of 64 bytes, and 16 MiB `into_guest` and `out_of_guest`, through the vsock
/// device and the supervisor, as a mediation route goes.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct VsockArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &VsockArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = VsockOptions::new(args.machine.run_options());
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().vsock(&options))
}
