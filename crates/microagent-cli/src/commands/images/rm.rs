//! `microagent images rm`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Microagent};
use serde_json::json;

use crate::{
    cli::{EXIT_FAILURE, Globals},
    completion,
    output::{Screen, size},
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The images: references, or digests or the beginnings of them
    #[arg(required = true, add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
}

pub(crate) fn run(args: &RmArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let (mut removed, mut files, mut bytes, mut code) = (Vec::new(), 0, 0, 0);
    // One that fails does not keep the others.
    for image in &args.images {
        match microagent.images().remove(image) {
            Ok(done) => {
                removed.extend(
                    done.records
                        .iter()
                        .map(|record| record.reference.familiar()),
                );
                files += done.reclaimed.files;
                bytes += done.reclaimed.bytes;
            }
            Err(error) => {
                screen.error(&error.report());
                code = EXIT_FAILURE;
            }
        }
    }
    let result = json!({ "removed": removed, "files": files, "bytes": bytes });
    screen.result(&result, |_| {
        let names: String = removed.iter().map(|name| format!("{name}\n")).collect();
        if bytes == 0 {
            names
        } else {
            format!("{names}{} reclaimed\n", size(bytes))
        }
    });
    Ok(code)
}
