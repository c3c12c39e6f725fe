//! `microagent kernel use`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent};

use crate::{cli::Globals, completion, output::Screen, surroundings};

#[derive(Debug, Args)]
pub(crate) struct UseArgs {
    /// The kernel's id, as `kernel list` shows it
    #[arg(add = ArgValueCompleter::new(completion::kernels))]
    kernel: String,
}

pub(crate) fn run(args: &UseArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let kernels = microagent.kernels();
    kernels.set_default(&args.kernel)?;
    screen.result(&kernels.inspect(&args.kernel)?, super::line);
    Ok(0)
}
