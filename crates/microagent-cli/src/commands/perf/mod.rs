//! `microagent perf`.

mod boot;
mod exec;
mod footprint;
mod shared;
mod steady;

use clap::Subcommand;
use microagent::Error;

use crate::{cli::Globals, output::Screen};

#[derive(Debug, Subcommand)]
pub(crate) enum PerfCommand {
    /// Measure how long machines take from the call to the end of a command
    Boot(boot::BootArgs),
    /// Measure how long commands take in a workspace that runs
    Exec(exec::ExecArgs),
    /// Measure the memory a machine takes on the host while it does nothing
    Footprint(footprint::FootprintArgs),
    /// Watch how often a machine wakes the host while it does nothing
    Steady(steady::SteadyArgs),
}

pub(crate) fn run(command: &PerfCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        PerfCommand::Boot(args) => boot::run(args, globals, screen),
        PerfCommand::Exec(args) => exec::run(args, globals, screen),
        PerfCommand::Footprint(args) => footprint::run(args, globals, screen),
        PerfCommand::Steady(args) => steady::run(args, globals, screen),
    }
}
