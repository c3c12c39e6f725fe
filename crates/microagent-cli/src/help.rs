//! What `--help` shows: the commands in groups, and paragraphs as wide as the terminal is.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use crate::cli::Cli;

/// Every command, under what it is looked for by.
const GROUPS: &[(&str, &[&str])] = &[
    ("Run", &["run", "exec", "connect", "cp", "artifacts"]),
    (
        "Workspaces",
        &[
            "create",
            "start",
            "halt",
            "stop",
            "kill",
            "pause",
            "resume",
            "quarantine",
            "delete",
            "apply",
            "clone",
            "commit",
            "supervise",
            "spec",
        ],
    ),
    (
        "What they do",
        &[
            "list", "ps", "status", "inspect", "logs", "events", "result", "wait", "stats",
            "metrics", "network",
        ],
    ),
    (
        "Images and registries",
        &["images", "rootfs", "login", "logout", "whoami"],
    ),
    (
        "This host",
        &[
            "doctor", "host", "kernel", "profiles", "perf", "df", "gc", "prune",
        ],
    ),
    (
        "The program",
        &["completions", "man", "contract", "version", "help"],
    ),
];

/// The definition of the command line, as it is shown.
pub(crate) fn program() -> Command {
    let program = flowing(Cli::command());
    let template = template(&program);
    program.help_template(template)
}

fn template(program: &Command) -> String {
    let (heading, name) = (
        *program.get_styles().get_header(),
        *program.get_styles().get_literal(),
    );
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (group, commands) in GROUPS {
        // Writing into a string does not fail.
        let _ = write!(text, "\n{heading}{group}:{heading:#}\n");
        for command in *commands {
            let about = about(program, command);
            let _ = writeln!(text, "  {name}{command:<13}{name:#}{about}");
        }
    }
    text + &format!("\n{heading}Options:{heading:#}\n{{options}}{{after-help}}")
}

/// What a command does, and what else it is called.
fn about(program: &Command, name: &str) -> String {
    let Some(command) = program.find_subcommand(name) else {
        // The command that clap adds by itself.
        return "Say more of a command; the same as COMMAND --help".to_owned();
    };
    let about = command.get_about().map(ToString::to_string);
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    let aliases = match aliases.as_slice() {
        [] => String::new(),
        aliases => format!(" [alias: {}]", aliases.join(", ")),
    };
    about.unwrap_or_default() + &aliases
}

/// The command with all that is to say of it after its options, so that `-h` is `--help`; each
/// paragraph on one line, which clap wraps: no terminal has to be as wide as it is written.
fn flowing(command: Command) -> Command {
    let about = command.get_about().map(ToString::to_string);
    let long = command.get_long_about().map(ToString::to_string);
    let more = long.zip(about).and_then(|(long, about)| {
        let more = long.strip_prefix(&about)?.trim_start_matches('.');
        let more = more.trim_start().to_owned();
        (!more.is_empty()).then_some(more)
    });
    let after = command.get_after_help().map(ToString::to_string);
    let text: Vec<_> = more.into_iter().chain(after).collect();
    let command = match text.is_empty() {
        true => command,
        false => command.after_help(flow(&text.join("\n\n"))),
    };
    command.long_about(None).mut_subcommands(flowing)
}

fn flow(text: &str) -> String {
    let mut flowing = String::with_capacity(text.len());
    let mut open = false;
    for line in text.lines() {
        let running = line.starts_with(|first: char| !first.is_whitespace());
        if !flowing.is_empty() {
            flowing.push(if open && running { ' ' } else { '\n' });
        }
        flowing.push_str(line);
        open = running;
    }
    flowing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The words that name each command, those of groups before their commands'.
    fn each(command: &Command, words: &[String], found: &mut impl FnMut(&[String])) {
        found(words);
        let children = command.get_subcommands();
        for child in children.filter(|child| !child.is_hide_set()) {
            let words = [words, &[child.get_name().to_owned()]].concat();
            each(child, &words, found);
        }
    }

    #[test]
    fn every_command_is_in_one_group() {
        let program = Cli::command();
        let shown = program.get_subcommands().filter(|it| !it.is_hide_set());
        let mut names: BTreeSet<_> = shown.map(Command::get_name).collect();
        names.insert("help");
        for name in GROUPS.iter().flat_map(|(_, names)| *names) {
            assert!(names.remove(name), "{name} is no command, or is told twice");
        }
        assert!(names.is_empty(), "{names:?} are in no group");
    }

    #[test]
    fn the_overview_fits_a_terminal() {
        let help = program().term_width(80).render_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(help.contains("[alias: rm]\n") && help.contains("\nThis host:\n"));
        assert!(help.contains("--state-dir") && help.contains("\nExamples:\n"));
    }

    #[test]
    fn there_is_one_help_and_not_two() {
        each(&program(), &["microagent".to_owned()], &mut |words| {
            let [short, long] = ["-h", "--help"].map(|help| {
                let words = words.iter().map(String::as_str).chain([help]);
                program().try_get_matches_from(words).unwrap_err()
            });
            assert_eq!(short.to_string(), long.to_string(), "{words:?}");
        });
    }

    #[test]
    fn paragraphs_are_lines_and_lists_stay() {
        assert_eq!(
            flow("Examples:\n  a b\n  c\n\nOne\ntwo\nthree.\n\nCodes:\n  1  x\n  2  y\nEnd"),
            "Examples:\n  a b\n  c\n\nOne two three.\n\nCodes:\n  1  x\n  2  y\nEnd"
        );
    }
}
