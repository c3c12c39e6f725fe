//! `microagent stats`.

use std::time::Duration;

use clap::{Args, error::ErrorKind};
use microagent::{Error, MachineStats, Microagent, WorkspaceName};
use serde::Serialize;

use crate::{
    cli::{Form, Globals, usage},
    each::{Names, each},
    output::{self, Screen, size},
    surroundings,
};

/// How often a sample is taken.
const PACE: Duration = Duration::from_secs(1);

/// What live workspaces cost the host: processor time, memory, disk traffic and connections of
/// their machine monitors.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent stats web db")]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    names: Names,
    /// Go on, a line a second, until the machine has ended; for one workspace
    #[arg(long, short)]
    follow: bool,
}

#[derive(Serialize)]
struct Sample {
    workspace: WorkspaceName,
    #[serde(flatten)]
    stats: MachineStats,
}

impl StatsArgs {
    /// What goes on is no document, and of one workspace.
    pub(crate) fn settle(&self, globals: &Globals) -> Result<(), clap::Error> {
        if !self.follow {
            return Ok(());
        }
        let message = match (&self.names.names[..], globals.form()) {
            (_, Form::Json) => {
                "--follow has no end to print as one JSON document; leave one of the two out"
            }
            ([_], Form::Text) => return Ok(()),
            _ => "--follow is for one workspace at a time",
        };
        Err(usage(ErrorKind::ArgumentConflict, message))
    }
}

pub(crate) fn run(args: &StatsArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let names = &args.names.names;
    if let ([name], true) = (&names[..], args.follow) {
        let workspace = workspaces.open(name)?;
        let mut follower = workspace.follow_stats()?;
        while let Some(stats) = follower.sample()? {
            let workspace = workspace.name().clone();
            output::to_stdout(&line(&Sample { workspace, stats }));
            std::thread::sleep(PACE);
        }
        return Ok(0);
    }
    let sample = |name: &str| {
        let workspace = workspaces.open(name)?;
        Ok(Sample {
            workspace: workspace.name().clone(),
            stats: workspace.stats()?,
        })
    };
    Ok(each(names, screen, sample, line))
}

fn line(sample: &Sample) -> String {
    let stats = &sample.stats;
    let percent = stats
        .cpu_percent
        .map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}"));
    let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), size);
    format!(
        "{}  cpu {percent}%  memory {}  supervisor {}  read {}  written {}  sessions {}  connections {}\n",
        sample.workspace,
        size(stats.memory_bytes),
        size(stats.supervisor_memory_bytes),
        bytes(stats.io_read_bytes),
        bytes(stats.io_write_bytes),
        stats.sessions,
        stats.connections,
    )
}
