//! `microagent wait`.

use std::time::Duration;

use clap::Args;
use microagent::{Error, Microagent, State, Workspace, WorkspaceName};
use serde::Serialize;

use crate::{
    cli::{EXIT_FAILURE, Globals},
    each::{Names, each},
    options::duration,
    output::Screen,
    surroundings,
};

/// Waits until workspaces are not live any more, or quarantined.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  microagent wait build
  microagent wait web db --timeout 10m     # each at most this long

Exit code: 0 when all are prepared, halted or stopped, 1 when one failed or is quarantined.")]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    names: Names,
    /// At most this long for each: SECONDS, or a number with ms, s, m or h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

/// How a workspace is that was waited for.
#[derive(Debug, Serialize)]
pub(super) struct Ended {
    pub(super) workspace: WorkspaceName,
    pub(super) state: State,
    pub(super) ok: bool,
}

impl Ended {
    /// Waits for it.
    pub(super) fn of(workspace: &Workspace<'_>, limit: Option<Duration>) -> Result<Self, Error> {
        let state = workspace.wait(limit)?;
        Ok(Self {
            workspace: workspace.name().clone(),
            state,
            ok: !state.is_fault(),
        })
    }
}

pub(crate) fn run(args: &WaitArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let mut well = true;
    let wait = |name: &str| {
        let report = Ended::of(&workspaces.open(name)?, args.timeout)?;
        well &= report.ok;
        Ok(report)
    };
    let code = each(&args.names.names, screen, wait, |report: &Ended| {
        format!("{} {}\n", report.workspace, report.state)
    });
    Ok(if well { code } else { EXIT_FAILURE })
}
