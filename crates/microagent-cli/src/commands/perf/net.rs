//! `microagent perf net`.

use clap::Args;
use microagent::{Error, Microagent, perf::NetOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots a machine that does nothing else, and measures the way from its agent to this program and back,
/// by TCP: `user` through its network to an address of this host, and `published` through a port of the
/// host that leads to the guest's loopback.
///
/// Each is a `round_trip` of 64 bytes, and 16 MiB `into_guest` and `out_of_guest`. With `--network isolated`
/// only the published port is measured.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct NetArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &NetArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = NetOptions::new(args.machine.run_options());
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().net(&options))
}
