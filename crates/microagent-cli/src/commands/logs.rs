//! `microagent logs`.

use std::time::{Duration, SystemTime};

use clap::{Args, error::ErrorKind};
use clap_complete::engine::ArgValueCompleter;
use microagent::{ConsoleOptions, Error, Microagent};
use serde_json::json;

use crate::{
    cli::{Form, Globals, usage},
    completion,
    options::instant,
    output::{self, Screen},
    surroundings,
};

/// How often more is looked for.
const PACE: Duration = Duration::from_millis(100);

/// What a workspace's guest wrote to its console: the kernel's messages and the agent's. What the
/// workload wrote is in `result`. With --supervisor: what the host's side of the machine wrote down,
/// as much of it as MICROAGENT_LOG said when the machine was started (else from `info` on).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent logs web --tail 20
  microagent logs --supervisor web")]
pub(crate) struct LogsArgs {
    /// The workspace
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    /// The supervisor's log instead of the console's
    #[arg(long)]
    supervisor: bool,
    /// Go on until its machine has ended
    #[arg(long, short)]
    follow: bool,
    /// Only the last so many lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<usize>,
    /// Only of boots since then: a time (2026-01-31T12:00:00Z), or how long ago (90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<SystemTime>,
}

impl LogsArgs {
    /// One document cannot go on.
    pub(crate) fn settle(&self, globals: &Globals) -> Result<(), clap::Error> {
        if self.follow && globals.form() == Form::Json {
            let message =
                "--follow has no end to print as one JSON document; leave one of the two out";
            return Err(usage(ErrorKind::ArgumentConflict, message));
        }
        Ok(())
    }
}

pub(crate) fn run(args: &LogsArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspace = microagent.workspaces().open(&args.name)?;
    let mut options = ConsoleOptions::new();
    if let Some(lines) = args.tail {
        options = options.tail(lines);
    }
    if let Some(since) = args.since {
        options = options.since(since.into());
    }
    let (bytes, mut follower) = if args.supervisor {
        workspace.supervisor_log(&options)?
    } else {
        workspace.console(&options)?
    };
    let text = lines(&bytes);
    let value = json!({ "workspace": workspace.name(), "logs": text });
    screen.result(&value, |_| text.clone());
    if !args.follow {
        return Ok(0);
    }
    loop {
        let live = workspace.state()?.is_live();
        let new = follower.read_new()?;
        output::to_stdout(&output::clean(&lines(&new)));
        if !live {
            return Ok(0);
        }
        std::thread::sleep(PACE);
    }
}

/// A console ends its lines as terminals want them ended.
fn lines(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "\n")
}
