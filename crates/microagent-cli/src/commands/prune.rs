//! `microagent prune`.

use clap::Args;
use microagent::{Error, Microagent};

use super::{
    gc,
    images::prune::{self, WhatArgs},
};
use crate::{cli::Globals, output::Screen, surroundings};

const RELATED: &str = "\
This is what `gc` does (leftovers of workspaces whose program was killed) and then what `images prune`
does (with --all: `images prune --all`). Workspaces stay, and so does what they are made of.
`microagent df` says beforehand what there is to gain.";

/// Takes away everything nobody needs.
#[derive(Debug, Args)]
#[command(after_help = RELATED)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    what: WhatArgs,
}

pub(crate) fn run(args: &PruneArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let Some(options) = args.what.options()? else {
        return Ok(0);
    };
    let report = microagent.prune(&options)?;
    screen.result(&report, |report| {
        let last = prune::reclaimed(report.reclaimed_bytes, report.dry_run);
        gc::text(&report.leftovers) + &prune::text(&report.images) + &last
    });
    Ok(0)
}
