//! `microagent events`.

use std::time::SystemTime;

use clap::{Args, error::ErrorKind};
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, Event, Microagent, Timestamp};
use serde_json::json;

use crate::{
    cli::{Form, Globals, usage},
    completion,
    options::instant,
    output::{self, Screen},
    surroundings,
};

/// What happened to a workspace, oldest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent events web --since 10m
  microagent --json events web --tail 1     # a line of JSON each")]
pub(crate) struct EventsArgs {
    /// The workspace
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    /// Go on until its machine has ended
    #[arg(long, short)]
    follow: bool,
    /// Only the last so many
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Only since then: a time (2026-01-31T12:00:00Z), or how long ago (90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<SystemTime>,
}

impl EventsArgs {
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

pub(crate) fn run(args: &EventsArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspace = microagent.workspaces().open(&args.name)?;
    let history = workspace.history()?;
    let recent = |event: &&Event| args.since.is_none_or(|since| event.at >= Timestamp(since));
    let events: Vec<_> = history.events.iter().filter(recent).collect();
    let skipped = events.len().saturating_sub(args.tail.unwrap_or(usize::MAX));
    let events = &events[skipped..];
    let value = json!({
        "workspace": workspace.name(),
        "events": events,
        "damaged_lines": history.damaged_lines,
    });
    screen.result(&value, |_| events.iter().map(|event| line(event)).collect());
    if history.damaged_lines > 0 {
        screen.announce(&format!(
            "{} lines of the history are damaged and left out.",
            history.damaged_lines
        ));
    }
    if args.follow {
        let told = history.events.last().map_or(0, |event| event.sequence);
        workspace.follow_events(|event| {
            if event.sequence > told {
                output::to_stdout(&output::clean(&line(event)));
            }
            true
        })?;
    }
    Ok(0)
}

/// An event as a line.
pub(super) fn line(event: &Event) -> String {
    let mut fields = serde_json::to_value(&event.kind).unwrap_or_default();
    let name = fields["event"].take();
    let details: String = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "event")
        .map(|(key, value)| match value.as_str() {
            Some(text) => format!(" {key}={}", text.lines().next().unwrap_or_default()),
            None => format!(" {key}={value}"),
        })
        .collect();
    format!(
        "{}  {:11} {}{details}\n",
        event.at,
        event.state,
        name.as_str().unwrap_or_default()
    )
}
