//! A machine that does nothing, for as long as somebody looks at it.

use std::{thread, time::Duration};

use microagent_protocol::ProcessIdentity;

use super::Subject;
use crate::{
    config::Config,
    error::Result,
    io::RunIo,
    options::RunOptions,
    workspaces::{CreateOptions, StartOptions, Workspaces},
};

/// How long a machine is left alone before it is looked at: what it took to boot goes meanwhile.
const SETTLING: Duration = Duration::from_secs(1);

/// Boots a machine like that of `run`, without its command, and gives its supervisor and its VMM to
/// `look`. It is gone afterwards.
pub(super) fn with<T>(
    config: &Config,
    run: &RunOptions,
    look: impl FnOnce([ProcessIdentity; 2]) -> Result<T>,
) -> Result<(T, Subject)> {
    let workspaces = Workspaces::new(config);
    let mut idle = run.clone();
    idle.command.clear();
    let created = workspaces.create(&CreateOptions::new(idle), RunIo::captured())?;
    let name = created.workspace.to_string();
    let looked = started(&workspaces, &name, look);
    let removed = workspaces.remove(&name, true);
    // What went wrong first is what is worth telling.
    let looked = looked?;
    removed?;
    Ok(looked)
}

fn started<T>(
    workspaces: &Workspaces<'_>,
    name: &str,
    look: impl FnOnce([ProcessIdentity; 2]) -> Result<T>,
) -> Result<(T, Subject)> {
    let mut workspace = workspaces.open(name)?;
    workspace.start(&StartOptions::new(), RunIo::captured())?;
    thread::sleep(SETTLING);
    let (state, live) = workspace.live_status()?;
    let gone = || workspace.in_state(state, "looked at");
    let live = live.ok_or_else(gone)?;
    let vmm = live.vmm.ok_or_else(gone)?;
    let looked = look([live.supervisor, vmm])?;
    Ok((looked, Subject::of(&workspace, Vec::new())?))
}
