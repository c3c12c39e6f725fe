//! `microagent delete`.

use std::io::{self, BufRead as _, IsTerminal as _};

use clap::Args;
use microagent::{Error, Microagent, RemovedWorkspace};

use crate::{
    cli::{Form, Globals},
    each::{Names, each},
    output::{self, Screen},
    surroundings,
};

/// Removes workspaces with everything they wrote. One that is live is left alone unless --force is
/// given; one that is not there is no error.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent delete tools
  microagent delete --force web db         # live or not")]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    names: Names,
    /// Kill one that is live first, and ask nothing
    #[arg(long, short)]
    force: bool,
    /// Ask nothing; on a terminal you are asked otherwise
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(args: &DeleteArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let names = &args.names.names;
    let asks = screen.form == Form::Text && io::stdin().is_terminal() && io::stderr().is_terminal();
    if asks && !args.yes && !args.force && !agreed(names)? {
        output::to_stderr("Nothing was deleted.\n");
        return Ok(crate::cli::EXIT_FAILURE);
    }
    let delete = |name: &str| microagent.workspaces().remove(name, args.force);
    Ok(each(names, screen, delete, |removed: &RemovedWorkspace| {
        let outcome = match removed.deleted {
            true => "deleted",
            false => "did not exist",
        };
        format!("{} {outcome}\n", removed.workspace)
    }))
}

fn agreed(names: &[String]) -> Result<bool, Error> {
    output::to_stderr(&output::clean(&format!(
        "Delete {} and everything written there? [y/N] ",
        names.join(", ")
    )));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|source| Error::Io {
            doing: "read",
            path: "standard input".into(),
            source,
        })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
