//! `microagent perf boot`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent, perf::BootOptions};

use super::shared::{EXIT_CODES, MachineArgs, MeasureArgs};
use crate::{cli::Globals, completion, output::Screen, surroundings};

/// Boots a machine again and again and tells where the time goes.
///
/// `total` is from the call until the guest has told how the command ended. Its parts: `prepare`
/// (image, kernel and workspace), `spawn` (the supervisor), `vmm` (until the VMM runs), `kernel` (until
/// the guest agent says hello), `agent` (until it is ready) and `workload`. `teardown`, until nothing is
/// left, comes after that.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct BootArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(completion::images))]
    image: String,
    /// The command and its arguments; it must end with code 0
    #[arg(
        value_name = "COMMAND",
        default_value = "true",
        trailing_var_arg = true
    )]
    command: Vec<String>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub(super) fn run(args: &BootArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let run = args.machine.run_options(&args.image).command(&args.command);
    let mut options = BootOptions::new(run);
    options.rounds = args.measure.rounds(options.rounds);
    args.measure
        .finish(screen, || microagent.perf().boot(&options))
}
