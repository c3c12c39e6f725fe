//! `microagent artifacts list`.

use clap::Args;
use microagent::{ArtifactList, Error, Microagent};

use super::facts;
use crate::{
    cli::Globals,
    output::{Screen, table},
    surroundings,
};

/// What a workspace was given as bundles, and the artifacts it declares as they are now: each is
/// read and hashed, through the guest's agent while it runs, from the disks when it does not. The size
/// and the SHA-256 of a directory are those of its tar.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent artifacts list build")]
pub(crate) struct ListArgs {
    /// The workspace
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn run(args: &ListArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let list = microagent.workspaces().open(&args.name)?.artifacts()?;
    screen.result(&list, text);
    Ok(0)
}

fn text(list: &ArtifactList) -> String {
    let ingress = list.ingress.iter().map(|bundle| {
        vec![
            bundle.name.to_string(),
            "in".to_owned(),
            bundle.mountpoint.to_string(),
            format!("bundle, {}", bundle.mode),
        ]
    });
    let egress = list.egress.iter().map(|artifact| {
        let mut row = vec![
            artifact.name.to_string(),
            "out".to_owned(),
            artifact.path.to_string(),
        ];
        row.extend(facts(&artifact.state));
        row
    });
    let rows: Vec<_> = ingress.chain(egress).collect();
    table(&["NAME", "WAY", "PATH", "TYPE", "SIZE", "SHA-256"], &rows)
}
