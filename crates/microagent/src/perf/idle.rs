//! A machine that does nothing, for as long as somebody looks at it.

use std::{thread, time::Duration};

use microagent_protocol::ProcessIdentity;

use super::Subject;
use crate::{
    config::Config,
    error::Result,
    io::RunIo,
    options::RunOptions,
    workspaces::{CreateOptions, StartOptions, Workspace, Workspaces},
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
    machine(config, run, |workspace| {
        thread::sleep(SETTLING);
        let (state, live) = workspace.live_status()?;
        let gone = || workspace.in_state(state, "looked at");
        let live = live.ok_or_else(gone)?;
        let vmm = live.vmm.ok_or_else(gone)?;
        look([live.supervisor, vmm])
    })
}

/// Boots a machine like that of `run`, without its command, for as long as `work` needs it.
pub(super) fn machine<T>(
    config: &Config,
    run: &RunOptions,
    work: impl FnOnce(&Workspace<'_>) -> Result<T>,
) -> Result<(T, Subject)> {
    let workspaces = Workspaces::new(config);
    let mut idle = run.clone();
    idle.command.clear();
    let created = workspaces.create(&CreateOptions::new(idle), RunIo::captured())?;
    let name = created.workspace.to_string();
    let worked = started(&workspaces, &name, work);
    let removed = workspaces.remove(&name, true);
    // What went wrong first is what is worth telling.
    let worked = worked?;
    removed?;
    Ok(worked)
}

fn started<T>(
    workspaces: &Workspaces<'_>,
    name: &str,
    work: impl FnOnce(&Workspace<'_>) -> Result<T>,
) -> Result<(T, Subject)> {
    let mut workspace = workspaces.open(name)?;
    workspace.start(&StartOptions::new(), RunIo::captured())?;
    let worked = work(&workspace)?;
    Ok((worked, Subject::of(&workspace, Vec::new())?))
}
