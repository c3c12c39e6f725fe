//! The guest agent, asked to measure: its program is in every guest, whatever the image has.

use microagent_protocol::measure::{MEASURE, PROGRAM};

use crate::{
    error::{Error, Result},
    exec::ExecOptions,
    io::RunIo,
    workspaces::Workspace,
};

/// The most of a guest's words that go into an error.
const WORDS: usize = 300;

/// Runs a measurement in the guest, and gives what it said.
pub(super) fn run(workspace: &Workspace<'_>, task: &[&str], io: RunIo) -> Result<String> {
    let argv = [PROGRAM, MEASURE].iter().chain(task);
    let options = ExecOptions::new(argv.map(|word| (*word).to_owned()))
        .user("0:0")
        .workdir("/");
    let result = workspace.exec(&options, io)?;
    if result.exit_code == 0 {
        return Ok(result.stdout.data.trim().to_owned());
    }
    let said = format!("{} {}", result.stdout.data, result.stderr.data);
    Err(strange(workspace, said.trim()))
}

/// The guest did not measure, and said this.
pub(super) fn strange(workspace: &Workspace<'_>, said: &str) -> Error {
    let said: String = said.chars().take(WORDS).collect();
    Error::NotMeasured {
        workspace: workspace.name().to_string(),
        reason: format!("the guest said {said:?}"),
    }
}
