//! `microagent completions`.

use clap::{Arg, Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use microagent::Error;

use crate::{cli::Cli, output};

const EXAMPLES: &str = "\
Examples:
  microagent completions bash > ~/.local/share/bash-completion/completions/microagent
  microagent completions zsh > ~/.zfunc/_microagent
  microagent completions fish > ~/.config/fish/completions/microagent.fish";

/// Prints a script that completes microagent's commands and options in a shell.
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
    output::to_stdout(&script(args.shell));
    Ok(0)
}

fn script(shell: CompletedShell) -> String {
    let shell = match shell {
        CompletedShell::Bash => Shell::Bash,
        CompletedShell::Zsh => Shell::Zsh,
        CompletedShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    let mut program = offered(&Cli::command(), &[]);
    clap_complete::generate(shell, &mut program, "microagent", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The command without its hidden options, which some generators would offer: those of container
/// engines are only there to be refused. Options of all commands are `inherited`, but for one that the
/// command has its own of.
fn offered(command: &Command, inherited: &[Arg]) -> Command {
    let about = command.get_about().cloned().unwrap_or_default();
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|option| !option.is_hide_set())
        .collect();
    let is_own = |other: &&Arg| {
        own.iter()
            .any(|option| option.get_long() == other.get_long())
    };
    let handed_on: Vec<Arg> = inherited
        .iter()
        .filter(|option| !is_own(option))
        .chain(own.iter().copied().filter(|option| option.is_global_set()))
        .map(|option| option.clone().global(false))
        .collect();
    let options = own.iter().copied().filter(|option| !option.is_global_set());
    let inner = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set());
    Command::new(command.get_name().to_owned())
        .about(about)
        .args(options.cloned())
        .args(&handed_on)
        .subcommands(inner.map(|inner| offered(inner, &handed_on)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in CompletedShell::value_variants() {
            let script = script(*shell);
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(
                    script.contains(name) != command.is_hide_set(),
                    "{shell:?} and {name}"
                );
            }
            assert!(script.contains("state-dir"), "{shell:?}");
            assert!(!script.contains("output-form"), "{shell:?}");
            // Options that are only there to be refused are nothing to offer.
            assert!(!script.contains("privileged"), "{shell:?}");
        }
    }
}
