//! `microagent apply`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{Applied, ApplyPlan, Effect, Error, FieldChange, Microagent, Spec, WorkspaceName};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    completion,
    output::Screen,
    surroundings,
};

const EXAMPLES: &str = "\
Examples:
  microagent apply --file microagent.yaml
  microagent apply --file microagent.yaml agent-1 --dry-run

Where nothing runs, all but image, disk size, bundles, and setup and files that are done can change.
While its machine is live: restart, outputs and the host addresses of forwards at once (what is
connected stays connected); memory, CPUs and health for the next start. The file is the whole of it: what it does not say becomes what it is by default.";

/// Makes a workspace what a spec says, where that takes no new one. If anything of it cannot change,
/// nothing does, and each such thing is named with what to do.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ApplyArgs {
    /// The workspace [default: that of the spec]
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    name: Option<WorkspaceName>,
    /// The spec (microagent.yaml)
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Say what would change and what cannot, and touch nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &ApplyArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let spec = Spec::read(&args.file)?;
    let name = args.name.as_ref().or(spec.name.as_ref());
    let name = name.ok_or_else(|| Error::Invalid {
        option: "NAME",
        reason: "none is given, and the spec has none".to_owned(),
    })?;
    let mut workspace = microagent.workspaces().open(name.as_str())?;
    let options = spec.options()?;
    if args.dry_run {
        let plan = workspace.plan_apply(&options)?;
        screen.result(&plan, plan_text);
        return Ok(if plan.refused.is_empty() {
            0
        } else {
            EXIT_FAILURE
        });
    }
    let applied = workspace.apply(&options)?;
    screen.result(&applied, |applied: &Applied| {
        lines(&applied.workspace, &applied.changes)
    });
    Ok(0)
}

fn plan_text(plan: &ApplyPlan) -> String {
    if plan.refused.is_empty() {
        return lines(&plan.workspace, &plan.changes);
    }
    let refused = plan.refused.iter();
    let refused =
        refused.map(|change| format!("{}: {change}: {}\n", plan.workspace, change.remedy));
    let possible = match &plan.changes[..] {
        [] => String::new(),
        changes => lines(&plan.workspace, changes),
    };
    refused.collect::<String>() + &possible
}

fn lines(workspace: &WorkspaceName, changes: &[FieldChange]) -> String {
    if changes.is_empty() {
        return format!("{workspace} is so already\n");
    }
    let line = |change: &FieldChange| {
        let value = |value: &Option<String>| value.as_deref().unwrap_or("none").to_owned();
        let when = match change.effect {
            Effect::Now => "now",
            Effect::NextStart => "at its next start",
        };
        format!(
            "{workspace}: {} from {} to {}, {when}\n",
            change.field,
            value(&change.old),
            value(&change.new)
        )
    };
    changes.iter().map(line).collect()
}
