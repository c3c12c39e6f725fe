//! `microagent spec`.

mod check;
mod schema;

use clap::Subcommand;
use microagent::Error;

use crate::output::Screen;

#[derive(Debug, Subcommand)]
pub(crate) enum SpecCommand {
    /// Say whether a spec is right, and what is wrong with it
    Check(check::CheckArgs),
    /// Print the JSON Schema of a spec, for editors
    Schema,
}

pub(crate) fn run(command: &SpecCommand, screen: &Screen) -> Result<u8, Error> {
    match command {
        SpecCommand::Check(args) => check::run(args, screen),
        SpecCommand::Schema => Ok(schema::run()),
    }
}
