//! `microagent start`.

use std::time::Duration;

use clap::Args;
use microagent::{Error, Mebibytes, Microagent, Profile, StartOptions, Started, VcpuCount, Verify};
use serde::Serialize;

use super::wait::Ended;

use crate::{
    cli::{EXIT_FAILURE, Globals},
    each::{Names, each},
    options::duration,
    output::Screen,
    progress, surroundings,
};

/// Boots workspaces from their own disks, and returns when their guests are ready; the machines go
/// on by themselves. What they boot from is compared with what was recorded first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent start agent-1
  microagent start build --wait            # until its command has ended
  microagent start agent --memory 1G       # this time")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    names: Names,
    /// Then wait until the machine has ended, as `wait` does
    #[arg(long)]
    wait: bool,
    /// Wait at most this long: SECONDS, or a number with ms, s, m or h
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    wait_timeout: Option<Duration>,
    /// Memory and CPUs of this profile, this time
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Memory, this time: MiB, or a number with M or G
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Mebibytes>,
    /// Number of vCPUs, this time
    #[arg(long, value_name = "N")]
    cpus: Option<VcpuCount>,
    /// End the machine after this time, whoever watches
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Hash everything it boots from again, also what has not changed since
    #[arg(long)]
    verify: bool,
}

/// One document, also with `--wait`.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    started: Started,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

impl StartArgs {
    fn options(&self) -> StartOptions {
        let mut options = StartOptions::new();
        macro_rules! set {
            ($($method:ident: $value:expr),* $(,)?) => {
                $(if let Some(value) = $value { options = options.$method(value); })*
            };
        }
        set! {
            profile: self.profile, memory: self.memory, vcpus: self.cpus, timeout: self.timeout,
            verify: self.verify.then_some(Verify::Everything),
        }
        options
    }
}

pub(crate) fn run(args: &StartArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let mut well = true;
    let code = each(
        &args.names.names,
        screen,
        |name| {
            let mut workspace = workspaces.open(name)?;
            let started = progress::following(screen, |io| workspace.start(&args.options(), io))?;
            let ended = match args.wait {
                true => Some(Ended::of(&workspace, args.wait_timeout)?),
                false => None,
            };
            well &= ended.as_ref().is_none_or(|ended| ended.ok);
            Ok(Outcome { started, ended })
        },
        |outcome| {
            let state = outcome
                .ended
                .as_ref()
                .map_or(outcome.started.state, |ended| ended.state);
            format!("{} {state}\n", outcome.started.workspace)
        },
    );
    Ok(if well { code } else { EXIT_FAILURE })
}
