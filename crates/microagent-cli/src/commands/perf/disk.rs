//! `microagent perf disk`.

use clap::Args;
use microagent::{Error, Mebibytes, Microagent, perf::DiskOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, output::Screen, surroundings};

/// Boots a machine that does nothing else, and has its agent read and write its disks, past the guest's
/// page cache: the scratch disk, which takes what the workspace writes, and the base disk, which is the
/// image's.
///
/// `scratch_write` and `scratch_read` go from end to end of a new file; `scratch_random_write`,
/// `scratch_random_read` and `base_random_read` are for 4 KiB somewhere; `scratch_sync` is for 4 KiB that are
/// on stable storage. What the host keeps in its own memory counts as the disk.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DiskArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// How much is read and written from end to end: MiB, or a number with M or G
    #[arg(long, value_name = "SIZE")]
    size: Option<Mebibytes>,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &DiskArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut options = DiskOptions::new(args.machine.run_options());
    options.size = args.size.unwrap_or(options.size);
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().disk(&options))
}
