//! The options of `microagent run`, and what they mean to the library.

use std::{path::PathBuf, time::Duration};

use clap::{Args, error::ErrorKind};
use clap_complete::engine::ArgValueCompleter;
use microagent::{Error, RunOptions, TtySize, WorkspaceName};

use crate::{
    cli::{Globals, usage},
    completion,
    options::{Words, WorkspaceArgs, duration},
    surroundings,
};

const EXAMPLES: &str = "\
Examples:
  microagent run debian:12 uname -a
  microagent run -it debian:12 bash
  microagent run -e TOKEN --workdir /src python:3.13 python -c 'print(1)'
  tar -c src | microagent run -i --profile medium rust:1 sh -c 'tar -x && cd src && cargo test'
  microagent run --output report=/out/report.txt --artifacts-dir . debian:12 /work/check
  microagent run --setup 'apt-get update' --timeout 10m --image debian:12 --exec 'apt-cache stats'

Everything after IMAGE belongs to the command. The command replaces the image's Cmd and keeps its
Entrypoint. Its output goes to standard output and standard error as it is; nothing else does,
unless standard error is a terminal or something failed.

Exit codes:
  the command's own; 128+N when signal N ended it
  124  the time given by --timeout was over
  125  microagent failed
  126  the command cannot be executed
  127  the command was not found
  2    the command line is wrong";

/// Boots the image in a microVM, runs the command in it, and removes everything again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "microagent run [OPTIONS] IMAGE [COMMAND [ARG]...]
       microagent run [OPTIONS] --image IMAGE --exec STRING
       microagent run [OPTIONS] --file SPEC [IMAGE [COMMAND [ARG]...]]")]
pub(crate) struct RunArgs {
    /// The image: NAME[:TAG] or NAME@sha256:DIGEST, with the registry in front
    #[arg(value_name = "IMAGE", add = ArgValueCompleter::new(completion::images))]
    first: Option<String>,
    /// The command and its arguments [default: the image's own]
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    rest: Vec<String>,

    /// Pass standard input on
    #[arg(long, short, help_heading = "Command")]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short, help_heading = "Command")]
    tty: bool,

    /// Name the workspace [default: a readable one is made up]
    #[arg(long, value_name = "NAME", help_heading = "Workspace")]
    name: Option<WorkspaceName>,
    /// Remove the workspace afterwards; this is the default
    #[arg(long, conflicts_with = "keep", help_heading = "Workspace")]
    rm: bool,
    /// Keep the workspace, shut down cleanly
    #[arg(long, help_heading = "Workspace")]
    keep: bool,
    /// Keep the workspace, leave it running, and print its name; the command's output goes to `result`
    #[arg(
        long,
        short,
        conflicts_with_all = ["rm", "interactive", "tty"],
        help_heading = "Workspace"
    )]
    pub(super) detach: bool,
    /// End the machine after this time: SECONDS, or a number with ms, s, m or h. Pulling does not count
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Workspace")]
    timeout: Option<Duration>,

    /// Put the artifacts into this directory at the end, made if it is missing: a file as NAME, a
    /// directory as NAME.tar
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "detach",
        help_heading = "Artifacts"
    )]
    artifacts_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(super) workspace: WorkspaceArgs,
}

impl RunArgs {
    /// Finds out which words are the image and which the command, and checks what one option
    /// alone does not show.
    pub(crate) fn settle(&mut self, globals: &mut Globals) -> Result<(), clap::Error> {
        let words = Words {
            first: self.first.take(),
            rest: std::mem::take(&mut self.rest),
        };
        let (image, command) = self.workspace.settle(words, globals)?;
        if image.is_none() && !self.workspace.has_spec() {
            return Err(usage(
                ErrorKind::MissingRequiredArgument,
                "the following required arguments were not provided:\n  <IMAGE>",
            ));
        }
        (self.first, self.rest) = (image, command);
        Ok(())
    }

    /// The image.
    #[cfg(test)]
    pub(crate) fn image(&self) -> &str {
        self.first.as_deref().unwrap_or_default()
    }

    /// The command and its arguments, if any were given.
    #[cfg(test)]
    pub(crate) fn command(&self) -> &[String] {
        &self.rest
    }

    /// Whether standard input goes to the command.
    pub(super) fn wants_stdin(&self) -> bool {
        self.interactive
    }

    /// Whether the command gets a terminal.
    pub(super) fn wants_tty(&self) -> bool {
        self.tty
    }

    /// The library's options.
    pub(super) fn into_options(self, tty: Option<TtySize>) -> Result<RunOptions, Error> {
        let mut options = self
            .workspace
            .into_options(self.first, self.rest)?
            .run_options()
            .clone()
            .keep(self.keep);
        macro_rules! set {
            ($($method:ident: $value:expr),* $(,)?) => {
                $(if let Some(value) = $value { options = options.$method(value); })*
            };
        }
        let artifacts_dir = self.artifacts_dir.map(|path| surroundings::absolute(&path));
        set! {
            name: self.name.map(String::from), timeout: self.timeout, tty: tty,
            artifacts_dir: artifacts_dir.transpose()?,
        }
        Ok(options)
    }
}
