//! `microagent images outdated`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent, OutdatedImage, OutdatedState};
use serde::Serialize;

use crate::{
    cli::{EXIT_FAILURE, Globals},
    completion,
    output::{Screen, short, table},
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct OutdatedArgs {
    /// Only these images: references, or digests or the beginnings of them
    #[arg(add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

#[derive(Serialize)]
struct List {
    images: Vec<OutdatedImage>,
}

pub(crate) fn run(args: &OutdatedArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let list = List {
        images: microagent.images().outdated(&args.images)?,
    };
    let mut code = 0;
    for image in &list.images {
        if let OutdatedState::Unknown { error } = &image.state {
            code = EXIT_FAILURE;
            if globals.form() == crate::cli::Form::Text {
                screen.error(error);
            }
        }
    }
    screen.result(&list, |list| {
        let rows: Vec<_> = list.images.iter().map(row).collect();
        table(&["IMAGE", "PLATFORM", "HERE", "THERE", "STATE"], &rows)
    });
    Ok(code)
}

fn row(image: &OutdatedImage) -> Vec<String> {
    let here = image.digest.to_string();
    let (there, state) = match &image.state {
        OutdatedState::Current => (here.clone(), "current"),
        OutdatedState::Outdated { remote_digest } => (remote_digest.to_string(), "outdated"),
        OutdatedState::Unknown { .. } => ("-".to_owned(), "unknown"),
    };
    vec![
        image.reference.familiar(),
        image.platform.to_string(),
        short(&here).to_owned(),
        short(&there).to_owned(),
        state.to_owned(),
    ]
}
