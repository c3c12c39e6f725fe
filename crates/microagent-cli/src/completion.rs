//! What a shell offers when TAB is pressed: the scripts of `microagent completions` ask the hidden
//! command `__complete`, which knows commands and options by their definition, and names from the local
//! store. It sends nothing anywhere, changes nothing, and says nothing when something is wrong.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::PathBuf,
    sync::OnceLock,
};

use clap::{Arg, Args, Command, CommandFactory as _};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter as _, complete};
use microagent::Microagent;

use crate::{
    cli::{Cli, Globals},
    output, surroundings,
};

/// The settings of the command line that is being typed.
static TYPED: OnceLock<Microagent> = OnceLock::new();

/// What was typed so far, up to the cursor.
#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    /// The words, that of the program first; the last is to be completed
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Prints a candidate a line, with a tab and a word on it where there is one.
pub(crate) fn run(args: CompleteArgs, globals: &Globals) -> u8 {
    let Some(last) = args.words.len().checked_sub(1) else {
        return 0;
    };
    let typed = Globals {
        state_dir: state_dir(&args.words[..last]).or_else(|| globals.state_dir.clone()),
        ..Globals::default()
    };
    if let Ok(config) = surroundings::config(&typed, &[]) {
        // Set once, here.
        let _ = TYPED.set(Microagent::new(config));
    }
    let here = std::env::current_dir().ok();
    let mut program = offered(&Cli::command(), &[]);
    let Ok(candidates) = complete(&mut program, args.words, last, here.as_deref()) else {
        return 0;
    };
    let mut seen = BTreeSet::new();
    for candidate in candidates {
        let Some(value) = candidate.get_value().to_str() else {
            continue;
        };
        // A name with a line break in it would be two.
        if value.contains(['\n', '\t']) || !seen.insert(value.to_owned()) {
            continue;
        }
        let help = candidate.get_help().map(ToString::to_string);
        let help = help.as_deref().and_then(|help| help.lines().next());
        output::to_stdout(&match help {
            Some(help) => format!("{value}\t{help}\n"),
            None => format!("{value}\n"),
        });
    }
    0
}

/// The state directory that the command line names.
fn state_dir(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        match word.strip_prefix("--state-dir") {
            Some("") => return words.next().map(PathBuf::from),
            Some(value) if value.starts_with('=') => return Some(PathBuf::from(&value[1..])),
            _ if word == "--" => return None,
            _ => {}
        }
    }
    None
}

/// The command without what is hidden, which would be offered: options of container engines are only
/// there to be refused. Options of all commands are `inherited`, but for one that the command has its own
/// of.
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
        .aliases(command.get_all_aliases().map(str::to_owned))
        .args(options.cloned())
        .args(&handed_on)
        .subcommands(inner.map(|inner| offered(inner, &handed_on)))
}

/// The images in the store whose names begin so: in their short form, or in full where that was begun.
pub(crate) fn images(begun: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(begun), Some(microagent)) = (begun.to_str(), TYPED.get()) else {
        return Vec::new();
    };
    let names = microagent.images().names().unwrap_or_default();
    names
        .iter()
        .filter_map(|name| {
            [name.familiar(), name.canonical()]
                .into_iter()
                .find(|form| form.starts_with(begun))
        })
        .map(CompletionCandidate::new)
        .collect()
}

/// The workspaces whose names begin so.
pub(crate) fn workspaces(begun: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(begun), Some(microagent)) = (begun.to_str(), TYPED.get()) else {
        return Vec::new();
    };
    let names = microagent.workspaces().names().unwrap_or_default();
    names
        .iter()
        .map(ToString::to_string)
        .filter(|name| name.starts_with(begun))
        .map(CompletionCandidate::new)
        .collect()
}

/// A workspace's path, of which the name is completed; and paths of this host.
pub(crate) fn endpoints(begun: &OsStr) -> Vec<CompletionCandidate> {
    let mut all: Vec<_> = workspaces(begun)
        .into_iter()
        .map(|candidate| {
            let mut value = candidate.get_value().to_owned();
            value.push(":");
            CompletionCandidate::new(value)
        })
        .collect();
    all.extend(PathCompleter::any().complete(begun));
    all
}

/// The kernels whose ids begin so.
pub(crate) fn kernels(begun: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(begun), Some(microagent)) = (begun.to_str(), TYPED.get()) else {
        return Vec::new();
    };
    let ids = microagent.kernels().ids().unwrap_or_default();
    ids.into_iter()
        .filter(|id| id.starts_with(begun))
        .map(CompletionCandidate::new)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_is_taken_from_the_line() {
        let of = |words: &[&str]| state_dir(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(
            of(&["microagent", "--state-dir", "/x", "run"]),
            Some("/x".into())
        );
        assert_eq!(
            of(&["microagent", "run", "--state-dir=/y"]),
            Some("/y".into())
        );
        assert_eq!(
            of(&["microagent", "run", "a", "--", "--state-dir", "/z"]),
            None
        );
        assert_eq!(of(&["microagent", "--state-dir"]), None);
        assert_eq!(of(&["microagent", "--state-directory", "/x"]), None);
    }

    #[test]
    fn commands_and_options_are_offered_and_what_is_hidden_is_not() {
        let offer = |words: &[&str]| -> Vec<String> {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let last = words.len() - 1;
            let mut program = offered(&Cli::command(), &[]);
            let candidates = complete(&mut program, words, last, None).unwrap();
            let values = candidates
                .iter()
                .map(|it| it.get_value().to_string_lossy().into_owned());
            values.collect()
        };
        assert_eq!(offer(&["microagent", "ima"]), ["images"]);
        assert!(offer(&["microagent", "images", "pru"]).contains(&"prune".to_owned()));
        // By an alias, too.
        assert_eq!(offer(&["microagent", "image", "unt"]), ["untag"]);
        assert!(offer(&["microagent", "run", "--verify"]).contains(&"--verify-key".to_owned()));
        assert!(!offer(&["microagent", "run", "--"]).contains(&"--privileged".to_owned()));
        assert!(
            !offer(&["microagent", ""])
                .iter()
                .any(|it| it.contains("__"))
        );
    }
}
