//! `microagent artifacts get`.

use std::path::PathBuf;

use clap::Args;
use microagent::{ArtifactState, Error, ErrorReport, Microagent, TakenArtifacts};

use super::tell;
use crate::{
    cli::{EXIT_FAILURE, Form, Globals},
    output::Screen,
    surroundings,
};

const EXAMPLES: &str = "\
Examples:
  microagent artifacts get build report -o out       # out/report, a file
  microagent artifacts get build site && tar -t < site.tar
  microagent artifacts get build                     # all of them, into this directory

A file comes under its artifact's name, a directory as one tar, NAME.tar. Each is there in whole, or
what was there before. `microagent cp` takes any file, and a directory as a tree.";

/// Takes declared artifacts out of a workspace, whether it runs or not, and prints where they are.
/// One that is missing keeps none of the others; the exit code is 1 then.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GetArgs {
    /// The workspace
    #[arg(value_name = "NAME")]
    name: String,
    /// The artifacts, by their names [default: all]
    #[arg(value_name = "ARTIFACT")]
    artifacts: Vec<String>,
    /// Put them into this directory; made if it is missing
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    output_dir: PathBuf,
}

pub(super) fn run(args: &GetArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspace = microagent.workspaces().open(&args.name)?;
    let taken = workspace.take_artifacts(&args.artifacts, &args.output_dir)?;
    screen.result(&taken, text);
    let mut code = 0;
    for artifact in &taken.artifacts {
        match artifact.missing() {
            Some(error) if screen.form == Form::Text => {
                let message = format!("{} ({}): {}", artifact.name, artifact.path, error.message);
                screen.error(&ErrorReport {
                    message,
                    ..error.clone()
                });
            }
            _ => tell(artifact, screen),
        }
        if artifact.missing().is_some() {
            code = EXIT_FAILURE;
        }
    }
    Ok(code)
}

/// Where each one is, a line each.
fn text(taken: &TakenArtifacts) -> String {
    let saved = taken
        .artifacts
        .iter()
        .filter_map(|artifact| match &artifact.state {
            ArtifactState::Present { saved_as, .. } => saved_as.as_ref(),
            ArtifactState::Missing { .. } => None,
        });
    saved.map(|path| format!("{}\n", path.display())).collect()
}
