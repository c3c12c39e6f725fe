//! `microagent artifacts`.

mod get;
mod list;

use clap::Subcommand;
use microagent::{Artifact, ArtifactKind, ArtifactState, Error};

use crate::{
    cli::Globals,
    output::{Screen, size},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactsCommand {
    /// List what a workspace was given as bundles, and the artifacts it declares as they are now
    #[command(alias = "ls")]
    List(list::ListArgs),
    /// Take artifacts out of a workspace
    Get(get::GetArgs),
}

pub(crate) fn run(
    command: &ArtifactsCommand,
    globals: &Globals,
    screen: &Screen,
) -> Result<u8, Error> {
    match command {
        ArtifactsCommand::List(args) => list::run(args, globals, screen),
        ArtifactsCommand::Get(args) => get::run(args, globals, screen),
    }
}

/// Tells what became of an artifact: in a log, too, if it is missing or incomplete.
pub(super) fn tell(artifact: &Artifact, screen: &Screen) {
    match &artifact.state {
        ArtifactState::Missing { error } => screen.announce(&format!(
            "The artifact {} ({}) is missing: {}",
            artifact.name, artifact.path, error.message
        )),
        ArtifactState::Present {
            size_bytes,
            skipped,
            saved_as,
            ..
        } => {
            if *skipped > 0 {
                screen.announce(&format!(
                    "The artifact {} came without {skipped} of its files: sockets, pipes or devices.",
                    artifact.name
                ));
            }
            if let Some(path) = saved_as {
                let size = size(*size_bytes);
                screen.notice(&format!("Took out {} ({size}).", path.display()));
            }
        }
    }
}

/// What an artifact is, its size and its sum.
fn facts(state: &ArtifactState) -> [String; 3] {
    match state {
        ArtifactState::Present {
            kind,
            size_bytes,
            sha256,
            ..
        } => {
            let kind = match kind {
                ArtifactKind::File => "file",
                ArtifactKind::Directory => "directory",
            };
            [kind.to_owned(), size(*size_bytes), sha256.clone()]
        }
        ArtifactState::Missing { error } => {
            ["missing".to_owned(), "-".to_owned(), error.message.clone()]
        }
    }
}
