//! `microagent spec check`.

use std::path::PathBuf;

use clap::Args;
use microagent::{Error, Spec};
use serde_json::json;

use crate::output::Screen;

/// Reads the spec and checks everything that can be checked without doing anything. Everything that
/// is wrong is told at once, each with its line and column.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent spec check microagent.yaml")]
pub(crate) struct CheckArgs {
    /// The spec
    #[arg(value_name = "FILE", default_value = Spec::FILE_NAME)]
    file: PathBuf,
}

pub(crate) fn run(args: &CheckArgs, screen: &Screen) -> Result<u8, Error> {
    let spec = Spec::read(&args.file)?;
    let value = json!({
        "file": args.file,
        "ok": true,
        "name": spec.name,
        "image": spec.image.map(|image| image.to_string()),
    });
    screen.result(&value, |_| {
        format!("{} is a good spec.\n", args.file.display())
    });
    Ok(0)
}
