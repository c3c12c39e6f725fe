//! What the documents say of the command line is so: each command line in them is understood, each
//! command has its call in the library, and each JSON object is one.

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::{Command, CommandFactory as _};
use microagent::{
    CommitOptions, ErrorReport, Event, ExecResult, ExportOptions, ExportTo, ImageArrival,
    ImageChange, ImageFilter, ImagePullOptions, ImageSortKey, Images, Kernels, MemoryUse,
    Microagent, Profile, PruneOptions, Registries, RootfsOptions, RunResult, SortKey, Spec,
    SuperviseEvent, SuperviseUnit, Workspace, WorkspaceFilter, Workspaces,
    perf::{self, Perf, PerfReport},
};

use crate::cli::{Cli, parse};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn document(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every document, by its name.
fn documents() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.extend(["README.md".to_owned(), "SECURITY.md".to_owned()]);
    names.sort();
    names
}

/// The lines of fenced blocks, with those that go on put together, and with whether it is one: what
/// else is set as code.
fn code(text: &str) -> Vec<(bool, String)> {
    let (mut fenced, mut found) = (false, Vec::<(bool, String)>::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            match found.last_mut() {
                Some((true, last)) if last.ends_with('\\') => {
                    last.pop();
                    last.push_str(line.trim_start());
                }
                _ => found.push((true, line.trim().to_owned())),
            }
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| (false, span.to_owned())));
        }
    }
    found
}

/// The calls of microagent in a line for the shell, each as its words.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    // What stands in a column of its own is said about it.
    let line = line.split("   ").next().unwrap_or(line);
    let mut calls: Vec<Vec<String>> = vec![Vec::new()];
    for word in words(line) {
        match word.as_str() {
            "|" | ";" | "&&" | "||" => calls.push(Vec::new()),
            _ => calls.last_mut().unwrap().push(word),
        }
    }
    for call in &mut calls {
        // A comment, and where the shell is to send the output.
        let end = |word: &String| word.starts_with('#') || word.starts_with('>');
        if let Some(at) = call.iter().position(end) {
            call.truncate(at);
        }
    }
    calls.retain(|call| call.first().is_some_and(|word| word == "microagent"));
    calls
}

/// Splits a line as a shell does, as far as documents need it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, ';') => {
                words.extend(word.take());
                words.push(";".to_owned());
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument,
    };
    let mut count = 0;
    for name in documents() {
        for (fenced, line) in code(&document(&name)) {
            for call in calls(&line) {
                // The synopses of the help, and of the tables: IMAGE stands for an image. And what only a
                // shell knows, which is run.
                let synopsis =
                    |word: &String| word.contains(['[', '<', '…']) || word.contains("@$");
                let synopsis = call.iter().any(synopsis);
                if synopsis || call.iter().any(|word| word == "IMAGE") {
                    continue;
                }
                count += 1;
                let Err(error) = parse(&call) else { continue };
                let help = [DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand];
                let named_only = !fenced && error.kind() == MissingRequiredArgument;
                assert!(
                    named_only || help.contains(&error.kind()),
                    "{name}: {line}\n{error}"
                );
            }
        }
    }
    assert!(count > 100, "only {count} command lines were found");
}

/// Each call of the library that a command stands for. A call that there is none of does not
/// compile here.
macro_rules! library {
    ($($path:path),* $(; $($name:literal => $call:expr),*)? $(,)?) => {
        BTreeSet::from([
            $({ let _ = $path; stringify!($path).replace(' ', "") },)*
            $($({ let _ = $call; $name.to_owned() },)*)?
        ])
    };
}

fn library() -> BTreeSet<String> {
    library!(
        Microagent::run,
        Microagent::copy,
        Microagent::host,
        Microagent::doctor,
        Microagent::workspaces,
        Microagent::perf,
        Perf::boot,
        Perf::exec,
        Perf::footprint,
        Perf::steady,
        Perf::disk,
        Perf::net,
        Perf::vsock,
        PerfReport::compare,
        PerfReport::save,
        PerfReport::read,
        perf::Picture::draw,
        Microagent::images,
        Microagent::registries,
        Microagent::kernels,
        Workspaces::launch,
        Workspaces::create,
        Workspaces::plan,
        Workspaces::remove,
        Workspaces::list,
        Workspaces::collect_garbage,
        Workspaces::metrics,
        Workspaces::open,
        Workspace::start,
        Workspace::halt,
        Workspace::stop,
        Workspace::kill,
        Workspace::pause,
        Workspace::resume,
        Workspace::quarantine,
        Workspace::artifacts,
        Workspace::take_artifacts,
        Workspace::exec,
        Workspace::connect_shell,
        Workspace::shell_line,
        Workspace::serial,
        Workspace::status,
        Workspace::history,
        Workspace::console,
        Workspace::supervisor_log,
        Workspace::result,
        Workspace::require_result,
        Workspace::wait,
        Workspace::stats,
        Workspace::follow_stats,
        Workspace::network,
        Workspace::clone_as,
        Workspace::commit,
        Workspace::apply,
        Workspace::plan_apply,
        Spec::read,
        Spec::schema,
        Spec::options,
        Profile::ALL,
        Profile::describe,
        Images::pull_all,
        Images::import,
        Images::list,
        Images::inspect,
        Images::remove,
        Images::outdated,
        Images::export,
        Images::load,
        Images::load_stream,
        Images::push,
        Images::build_rootfs,
        Images::tag,
        Images::untag,
        Images::history,
        Images::tree,
        Images::verify,
        Images::prune,
        Microagent::disk_usage,
        Microagent::prune,
        Registries::login,
        Registries::logout,
        Registries::whoami,
        Kernels::install,
        Kernels::list,
        Kernels::inspect,
        Kernels::build,
        Kernels::check_configuration,
        Kernels::set_default,
        Kernels::verify,
        Kernels::remove;
        "Workspace::follow_events" =>
            |workspace: &Workspace<'_>, tell: fn(&Event) -> bool| workspace.follow_events(tell),
        "Workspace::supervise" => |workspace: &mut Workspace<'_>, options, tell: fn(SuperviseEvent)| {
            workspace.supervise(options, tell)
        },
        "SuperviseUnit" => size_of::<SuperviseUnit>,
        "WorkspaceFilter" => size_of::<WorkspaceFilter>,
        "SortKey" => size_of::<SortKey>,
        "CommitOptions" => size_of::<CommitOptions>,
        "ImageChange" => size_of::<ImageChange>,
        "ExportOptions" => size_of::<ExportOptions>,
        "ExportTo" => size_of::<ExportTo<'_>>,
        "RootfsOptions" => size_of::<RootfsOptions>,
        "ImageArrival" => size_of::<ImageArrival>,
        "MemoryUse" => size_of::<MemoryUse>,
        "ImageFilter" => size_of::<ImageFilter>,
        "ImageSortKey" => size_of::<ImageSortKey>,
        "ImagePullOptions" => size_of::<ImagePullOptions>,
        "PruneOptions" => size_of::<PruneOptions>,
        "PerfReport" => size_of::<PerfReport>,
        "contract" => microagent::contract
    )
}

/// The rows of the table in docs/library.md: what is in code on its left and on its right.
fn table() -> Vec<(Vec<String>, Vec<String>)> {
    let page = document("docs/library.md");
    let (_, table) = page.split_once("| command | call |\n|---|---|\n").unwrap();
    let spans = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|row| {
            let (left, right) = row.trim_matches('|').split_once('|').unwrap();
            (spans(left), spans(right))
        })
        .collect()
}

/// Every command that does something, by its words.
fn commands(command: &Command, before: &str, found: &mut BTreeSet<String>) {
    for child in command.get_subcommands() {
        let name = format!("{before}{}", child.get_name());
        match child.has_subcommands() {
            true => commands(child, &format!("{name} "), found),
            false if child.get_name() != "help" => {
                found.insert(name);
            }
            false => {}
        }
    }
}

#[test]
fn every_command_is_a_call_of_the_library() {
    const OWN: [&str; 4] = ["completions", "__complete", "man", "version"];
    let mut all = BTreeSet::new();
    commands(&Cli::command(), "", &mut all);
    let (mut told, known) = (BTreeSet::new(), library());
    for (left, right) in table() {
        assert!(!right.is_empty(), "{left:?} has no call");
        let mut before = String::new();
        for words in left {
            let name = words.split(" -").next().unwrap_or(&words).to_owned();
            if let Some((group, _)) = name.split_once(' ') {
                before = format!("{group} ");
            }
            // Further commands of a group are named without it.
            let full = format!("{before}{}", name.trim_start_matches(&before));
            told.insert(if all.contains(&full) { full } else { name });
        }
        // Each call is written out, or is a method of the one before it, or of what that gives.
        let mut of = String::new();
        for call in right.iter().filter(|call| !call.starts_with("--")) {
            let call = call.trim_end_matches("()");
            let owners = match call.rsplit_once("::") {
                Some((owner, _)) => {
                    owner.clone_into(&mut of);
                    Vec::new()
                }
                None if of == "Microagent" => {
                    vec!["Workspaces", "Images", "Registries", "Kernels"]
                }
                None => vec![of.as_str()],
            };
            let mut names = owners.iter().map(|owner| format!("{owner}::{call}"));
            assert!(
                known.contains(call) || names.any(|name| known.contains(&name)),
                "docs/library.md names {call}, which is no call that is held here"
            );
        }
    }
    for name in &all {
        assert!(
            told.contains(name) || OWN.contains(&name.as_str()),
            "docs/library.md has no call for {name}"
        );
    }
    for name in &told {
        assert!(
            all.contains(name) || name == "--file",
            "docs/library.md has a row for {name}, and there is no such command"
        );
    }
}

#[test]
fn the_json_that_is_shown_is_what_is_printed() {
    let page = document("docs/json.md");
    let blocks: Vec<serde_json::Value> = page
        .split("```json\n")
        .skip(1)
        .map(|block| {
            let (text, _) = block.split_once("```").unwrap();
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
        })
        .collect();
    let keys = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    macro_rules! same {
        ($block:expr, $type:ty) => {
            let value: $type = serde_json::from_value($block.clone()).unwrap();
            assert_eq!(keys(&serde_json::to_value(value).unwrap()), keys($block));
        };
    }
    let [run, exec, error] = &blocks[..] else {
        panic!("{} objects are shown", blocks.len());
    };
    same!(run, RunResult);
    same!(exec, ExecResult);
    same!(error, ErrorReport);
}
