//! `microagent images prune`.

use std::{
    io::{self, IsTerminal},
    time::SystemTime,
};

use clap::Args;
use microagent::{Error, Microagent, PruneOptions, PruneReason, Pruned};

use crate::{
    cli::Globals,
    options::instant,
    output::{Screen, short, size},
    surroundings,
    terminal::{self, Typed},
};

const EXAMPLES: &str = "\
Examples:
  microagent images prune                     # what belongs to no image
  microagent images prune --all --until 7d    # also images that were not used for a week
  microagent images prune --all --dry-run     # only say what would go

What a workspace is made of is never taken, and neither is what a run, a pull or an import uses at this
moment. `microagent prune` does this and what `microagent gc` does.";

/// Takes away what nobody needs: layers, disks and parts of downloads that belong to no image, and
/// records of images whose content is gone; with --all also images that no workspace is made of.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) what: WhatArgs,
}

/// What both commands that prune take.
#[derive(Debug, Args)]
pub(crate) struct WhatArgs {
    /// Also images that no workspace is made of
    #[arg(long, short, visible_alias = "images")]
    all: bool,
    /// Only what was last used, or came, before then: a time, or how long ago (2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<SystemTime>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// With --all: do not ask
    #[arg(long, short)]
    yes: bool,
}

impl WhatArgs {
    /// What is to go; `None` if the user, who was asked, does not want it.
    pub(crate) fn options(&self) -> Result<Option<PruneOptions>, Error> {
        let options = PruneOptions::new()
            .all(self.all)
            .until(self.until)
            .dry_run(self.dry_run);
        if !self.all || self.yes || self.dry_run {
            return Ok(Some(options));
        }
        if !io::stdin().is_terminal() {
            return Err(Error::Invalid {
                option: "--all",
                reason: "it removes images, and there is no terminal to ask at; add --yes, or --dry-run to see which".to_owned(),
            });
        }
        let asked = terminal::ask("Remove every image that no workspace is made of? [y/N] ")?;
        Ok(match asked {
            Typed::Text(text) if matches!(text.trim(), "y" | "Y" | "yes") => Some(options),
            _ => None,
        })
    }
}

pub(crate) fn run(args: &PruneArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let Some(options) = args.what.options()? else {
        return Ok(0);
    };
    let pruned = microagent.images().prune(&options)?;
    screen.result(&pruned, |pruned| {
        text(pruned) + &reclaimed(pruned.reclaimed.bytes, pruned.dry_run)
    });
    Ok(0)
}

/// The images that went, a line each, and what stays though no name stands for it.
pub(crate) fn text(pruned: &Pruned) -> String {
    let images = pruned.images.iter().map(|image| {
        let why = match image.why {
            PruneReason::Unused => "unused",
            PruneReason::Damaged => "damaged",
        };
        format!(
            "{}  {}  {why}\n",
            image.reference,
            short(&image.digest.to_string())
        )
    });
    let in_use = pruned.reclaimed.in_use.iter();
    images
        .chain(in_use.map(|path| format!("{}  stays: in use\n", path.display())))
        .collect()
}

/// The last line.
pub(crate) fn reclaimed(bytes: u64, dry_run: bool) -> String {
    match dry_run {
        true => format!("{} would be reclaimed\n", size(bytes)),
        false => format!("{} reclaimed\n", size(bytes)),
    }
}
