//! `microagent kernel rm`.

use clap::Args;
use microagent::{Error, Microagent};
use serde_json::json;

use crate::{
    cli::{EXIT_FAILURE, Globals},
    output::Screen,
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The kernels' ids, as `kernel list` shows them
    #[arg(required = true)]
    kernels: Vec<String>,
}

pub(crate) fn run(args: &RmArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let (mut removed, mut code) = (Vec::new(), 0);
    // One that fails does not keep the others.
    for kernel in &args.kernels {
        match microagent.kernels().remove(kernel) {
            Ok(()) => removed.push(kernel.as_str()),
            Err(error) => {
                screen.error(&error.report());
                code = EXIT_FAILURE;
            }
        }
    }
    screen.result(&json!({ "removed": removed }), |_| {
        removed.iter().map(|kernel| format!("{kernel}\n")).collect()
    });
    Ok(code)
}
