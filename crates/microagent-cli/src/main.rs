//! The `microagent` command: it parses, calls the library and draws. It has no logic of its own.
//!
//! The same executable is the supervisor when it is started under that name.

mod cli;
mod commands;
mod completion;
#[cfg(test)]
mod documents;
mod each;
#[cfg(test)]
mod flags;
mod help;
mod observe;
mod options;
mod output;
mod progress;
#[cfg(test)]
mod reference;
mod refusals;
mod signals;
mod streams;
mod surroundings;
mod template;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Returns only if this process is not to be a supervisor.
    #[cfg(unix)]
    microagent_supervisor::entry();
    terminal::restore_on_panic();
    keep_out_of_core_dumps();
    cli::main()
}

/// This process may hold registry passwords: its memory goes into no core dump and to no debugger of the
/// same user. Programs it starts are not concerned.
fn keep_out_of_core_dumps() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::debug!("core dumps stay on: {error}");
    }
}
