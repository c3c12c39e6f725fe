//! `microagent create`.

use clap::{Args, error::ErrorKind};
use clap_complete::engine::ArgValueCompleter;
use microagent::{
    CreateOptions, CreatePlan, Created, Error, Microagent, RestartPolicy, WorkspaceName,
};

use crate::{
    cli::{Globals, usage},
    completion,
    options::{Words, WorkspaceArgs},
    output::{self, Screen},
    progress, surroundings,
};

const EXAMPLES: &str = "\
Examples:
  microagent create agent-1 debian:12
  microagent create build debian:12 --profile medium -- make -C /src
  microagent create db postgres:16 --image-command -e POSTGRES_PASSWORD=x --restart on-failure
  microagent create --file microagent.yaml
  microagent create tools --setup 'apt-get update && apt-get install -y git' --image debian:12

The command, if there is one, runs at each start, and its end ends the machine; without one the
machine idles until it is told to end. Write -- before a command that has options.";

/// Makes a workspace that stays: its manifest and a disk of its own. Nothing boots, except once for
/// setup commands and the files of a spec; when that fails the workspace is there, and its next start tries again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "microagent create [OPTIONS] NAME IMAGE [-- COMMAND [ARG]...]
       microagent create [OPTIONS] NAME --image IMAGE [-- COMMAND [ARG]...]
       microagent create [OPTIONS] --file SPEC [NAME [IMAGE [-- COMMAND [ARG]...]]]")]
pub(crate) struct CreateArgs {
    /// The workspace's name: up to 63 of a-z, 0-9 and '-' [default: that of the spec]
    #[arg(value_name = "NAME")]
    name: Option<WorkspaceName>,
    /// The image: NAME[:TAG] or NAME@sha256:DIGEST, with the registry in front
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(completion::images))]
    first: Option<String>,
    /// What runs at each start [default: nothing]
    #[arg(value_name = "COMMAND")]
    rest: Vec<String>,

    /// Run the image's own command at each start
    #[arg(long, help_heading = "Command")]
    image_command: bool,
    /// When `supervise` starts it again: never, on-failure or always [default: never]
    #[arg(long, value_name = "POLICY", help_heading = "Workspace")]
    restart: Option<RestartPolicy>,
    /// Say what would be made, and touch nothing
    #[arg(long, help_heading = "Workspace")]
    dry_run: bool,

    #[command(flatten)]
    workspace: WorkspaceArgs,
}

impl CreateArgs {
    /// Finds out which words are the image and which the command.
    pub(crate) fn settle(&mut self, globals: &mut Globals) -> Result<(), clap::Error> {
        let words = Words {
            first: self.first.take(),
            rest: std::mem::take(&mut self.rest),
        };
        (self.first, self.rest) = self.workspace.settle(words, globals)?;
        let missing = match (&self.name, &self.first) {
            (None, _) => Some("<NAME>"),
            (_, None) => Some("<IMAGE>"),
            _ => None,
        };
        match missing.filter(|_| !self.workspace.has_spec()) {
            Some(missing) => Err(usage(
                ErrorKind::MissingRequiredArgument,
                format!("the following required arguments were not provided:\n  {missing}"),
            )),
            None => Ok(()),
        }
    }

    fn into_options(self) -> Result<CreateOptions, Error> {
        let mut options = self.workspace.into_options(self.first, self.rest)?;
        if let Some(name) = self.name {
            let run = options.run_options().clone().name(name);
            options = options.with_run_options(run);
        }
        if self.image_command {
            options = options.image_command(true);
        }
        if let Some(policy) = self.restart {
            options = options.restart(policy);
        }
        Ok(options)
    }
}

pub(crate) fn run(args: CreateArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let config = surroundings::config(globals, &args.workspace.insecure_registry)?;
    let microagent = Microagent::new(config);
    let dry_run = args.dry_run;
    let options = args.into_options()?;
    if dry_run {
        let plan = microagent.workspaces().plan(&options)?;
        screen.result(&plan, plan_text);
        return Ok(0);
    }
    let created = progress::following(screen, |io| microagent.workspaces().create(&options, io))?;
    screen.result(&created, |created: &Created| {
        format!("{}\n", created.workspace)
    });
    Ok(0)
}

fn plan_text(plan: &CreatePlan) -> String {
    let mut rows = vec![
        ("name", plan.name.to_string()),
        ("image", plan.image.clone()),
        ("directory", plan.directory.display().to_string()),
        ("machine", output::machine(&plan.resources)),
        ("host name", plan.hostname.clone()),
    ];
    if !plan.command.is_empty() {
        rows.push(("command", plan.command.join(" ")));
    }
    rows.extend(plan.setup.iter().map(|script| ("setup", script.clone())));
    output::facts(&rows)
}
