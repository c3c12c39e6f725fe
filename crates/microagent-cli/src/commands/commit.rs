//! `microagent commit`.

use clap::Args;
use microagent::{CommitOptions, Committed, Error, ImageChange, Microagent, Pushed, Reference};
use serde::Serialize;

use super::images::push;
use crate::{
    cli::Globals,
    output::{Screen, size},
    progress::Progress,
    surroundings,
};

/// Makes an image of a workspace's image and what the workspace has written: one more layer. The
/// workspace must not be running; one that is quarantined is committed as its disk is. What volumes
/// hold, and the host's name in /etc, is no part of it.
#[derive(Debug, Args)]
#[command(after_help = r#"Examples:
  microagent commit tools team/tools:1 -m 'with git'
  microagent commit tools team/tools:2 --change 'CMD ["git", "status"]'"#)]
pub(crate) struct CommitArgs {
    /// The workspace
    workspace: String,
    /// The name of the image
    #[arg(value_name = "NAME[:TAG]")]
    image: Reference,
    /// What is said of it in the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Who made it, said there too
    #[arg(long, short, value_name = "NAME")]
    author: Option<String>,
    /// Change what the image says of itself: CMD, ENTRYPOINT, ENV, LABEL, STOPSIGNAL, USER or WORKDIR and
    /// its value, as in a Dockerfile; repeatable
    #[arg(long, short, value_name = "LINE")]
    change: Vec<ImageChange>,
    /// Push it to its registry
    #[arg(long)]
    push: bool,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST", requires = "push")]
    insecure_registry: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    workspace: String,
    #[serde(flatten)]
    committed: Committed,
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<Pushed>,
}

pub(crate) fn run(args: CommitArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let workspace = microagent.workspaces().open(&args.workspace)?;
    let mut options = CommitOptions::new();
    options.message = args.message;
    options.author = args.author;
    options.changes = args.change;
    let progress = Progress::new(screen);
    let name = args.image.to_string();
    let hear = |event| {
        screen.event(&name, &event);
        progress.image(&event);
    };
    let committed = workspace.commit(&args.image, &options, &hear);
    let pushed = match &committed {
        Ok(committed) if args.push => {
            let digest = committed.image.digest.to_string();
            Some(
                microagent
                    .images()
                    .push(&digest, Some(&args.image), None, &hear),
            )
        }
        _ => None,
    };
    progress.clear();
    let report = Report {
        workspace: args.workspace,
        committed: committed?,
        pushed: pushed.transpose()?,
    };
    let committed = &report.committed;
    if committed.sockets_left_out > 0 {
        screen.announce(&format!(
            "Left out {} sockets: they belong to their processes.",
            committed.sockets_left_out
        ));
    }
    screen.announce(&format!(
        "{name}: 1 layer more, {} entries ({})",
        committed.entries,
        size(committed.layer_bytes)
    ));
    if let Some(pushed) = &report.pushed {
        screen.announce(&push::summary(pushed));
    }
    screen.result(&report, |report| {
        super::images::line(&report.committed.image)
    });
    Ok(0)
}
