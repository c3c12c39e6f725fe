//! `microagent list` and `microagent ps`.

use clap::Args;
use microagent::{Error, Microagent, Reference, SortKey, State, WorkspaceFilter, WorkspaceSummary};
use serde_json::json;

use crate::{
    cli::Globals,
    output::{self, Colour, Screen, table, to_the_second},
    surroundings,
    template::Template,
};

/// Every workspace, a row each.
///
/// `ps` shows those that are live.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent list --filter state=running --sort created
  microagent ps --format '{{name}} {{image}}'
  microagent list --quiet")]
pub(crate) struct ListArgs {
    /// Also those that are not live (`list` shows them anyway)
    #[arg(long, short)]
    all: bool,
    /// Only those with this: state=STATE, name=PATTERN (with *), image=PATTERN, network=MODE,
    /// restart=POLICY; repeatable. One of several values of a field must hold, and every field
    #[arg(long, value_name = "FIELD=VALUE")]
    filter: Vec<WorkspaceFilter>,
    /// Print this text for each, with each {{field}} filled in, named as in JSON: '{{name}} {{state}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
    /// Order them by name, state, image, created or observed
    #[arg(long, value_name = "FIELD", default_value = "name")]
    sort: SortKey,
}

pub(crate) fn run(args: &ListArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    show(args, false, globals, screen)
}

pub(crate) fn ps(args: &ListArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    show(args, !args.all, globals, screen)
}

fn show(args: &ListArgs, live: bool, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let mut workspaces = microagent.workspaces().list()?;
    workspaces.retain(|row| WorkspaceFilter::all_hold(&args.filter, row));
    workspaces.retain(|row| !live || row.state.is_live());
    args.sort.sort(&mut workspaces);
    if let Some(template) = &args.format {
        for row in &workspaces {
            output::to_stdout(&output::clean(&template.fill(row)?));
        }
        return Ok(0);
    }
    if screen.only_names(workspaces.iter().map(|row| row.name.to_string())) {
        return Ok(0);
    }
    let value = json!({ "workspaces": workspaces });
    screen.coloured(&value, |_| {
        let rows: Vec<_> = workspaces.iter().map(|it| row(it, screen)).collect();
        let headings = [
            "NAME", "STATE", "BACKEND", "IMAGE", "NETWORK", "RESTART", "CREATED",
        ];
        let mut text = table(&headings, &rows);
        for row in &workspaces {
            if let Some(damage) = &row.damage {
                text.push_str(&format!(
                    "damaged: {}: {}\n",
                    row.name,
                    output::clean(damage)
                ));
            }
        }
        text
    });
    Ok(0)
}

fn row(row: &WorkspaceSummary, screen: &Screen) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        row.name.to_string(),
        painted(row.state, screen),
        or_none(row.backend.map(|backend| backend.to_string())),
        or_none(Some(familiar(&row.image)).filter(|image| !image.is_empty())),
        or_none(row.network.map(|network| network.to_string())),
        row.restart.to_string(),
        or_none(row.created_at.map(to_the_second)),
    ]
}

/// An image as people write it, as `images list` does; one whose name is damaged, as it is.
fn familiar(image: &str) -> String {
    match image.parse::<Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => image.to_owned(),
    }
}

/// A state in its colour.
pub(super) fn painted(state: State, screen: &Screen) -> String {
    let text = state.to_string();
    match state {
        State::Running => screen.paint(Colour::Green, &text),
        State::Starting | State::Paused => screen.paint(Colour::Yellow, &text),
        State::Failed | State::Quarantined => screen.paint(Colour::Red, &text),
        State::Prepared | State::Halted | State::Stopped => text,
    }
}
