//! `microagent images history`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, HistoryStep, Microagent};

use crate::{
    cli::Globals,
    completion,
    output::{Screen, short, size, table},
    surroundings,
};

/// The longest step that is shown whole in a table.
const LONGEST: usize = 80;

/// Shows how an image came to be, as its builder wrote it down, latest step first.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The image: a reference, or a digest or the beginning of it
    #[arg(add = ArgValueCompleter::new(completion::images))]
    image: String,
    /// Show steps whole, however long they are
    #[arg(long)]
    no_trunc: bool,
}

pub(crate) fn run(args: &HistoryArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let history = microagent.images().history(&args.image)?;
    screen.result(&history, |history| {
        let steps = history.steps.iter().rev();
        let rows: Vec<_> = steps.map(|step| row(step, args.no_trunc)).collect();
        table(&["LAYER", "SIZE", "CREATED", "STEP"], &rows)
    });
    Ok(0)
}

fn row(step: &HistoryStep, whole: bool) -> Vec<String> {
    let said = [&step.created_by, &step.comment].into_iter().flatten();
    let said: Vec<&str> = said
        .map(String::as_str)
        .filter(|it| !it.is_empty())
        .collect();
    // A step is one line, whatever its builder wrote.
    let mut text: String = said
        .join("  # ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if !whole && text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST - 1).chain(['…']).collect();
    }
    let none = || "-".to_owned();
    vec![
        step.layer
            .map_or_else(none, |layer| short(&layer.to_string()).to_owned()),
        step.layer.map_or_else(none, |_| size(step.size_bytes)),
        step.created.clone().unwrap_or_else(none),
        if text.is_empty() { none() } else { text },
    ]
}
