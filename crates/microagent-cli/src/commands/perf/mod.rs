//! `microagent perf`.

mod boot;
mod disk;
mod exec;
mod footprint;
mod net;
mod shared;
mod steady;
mod vsock;

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
    /// Measure how fast the disks of a machine are, from inside
    Disk(disk::DiskArgs),
    /// Measure how fast bytes come to a machine and back by its network and by a published port
    Net(net::NetArgs),
    /// Measure how fast bytes come to a machine and back by the guest link
    Vsock(vsock::VsockArgs),
}

pub(crate) fn run(command: &PerfCommand, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    match command {
        PerfCommand::Boot(args) => boot::run(args, globals, screen),
        PerfCommand::Exec(args) => exec::run(args, globals, screen),
        PerfCommand::Footprint(args) => footprint::run(args, globals, screen),
        PerfCommand::Steady(args) => steady::run(args, globals, screen),
        PerfCommand::Disk(args) => disk::run(args, globals, screen),
        PerfCommand::Net(args) => net::run(args, globals, screen),
        PerfCommand::Vsock(args) => vsock::run(args, globals, screen),
    }
}
