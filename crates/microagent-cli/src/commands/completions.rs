//! `microagent completions`.

use clap::{Args, ValueEnum};
use microagent::Error;

use crate::output;

const EXAMPLES: &str = "\
Examples:
  microagent completions bash > ~/.local/share/bash-completion/completions/microagent
  microagent completions zsh > ~/.zfunc/_microagent
  microagent completions fish > ~/.config/fish/completions/microagent.fish

Images, workspaces and kernels are completed from what is on this host; nothing else is asked.";

/// Prints a script that completes microagent's commands, options and names in a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: CompletedShell,
}

/// A shell that there are completions for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<u8, Error> {
    output::to_stdout(match args.shell {
        CompletedShell::Bash => include_str!("completions/microagent.bash"),
        CompletedShell::Zsh => include_str!("completions/microagent.zsh"),
        CompletedShell::Fish => include_str!("completions/microagent.fish"),
    });
    Ok(0)
}
