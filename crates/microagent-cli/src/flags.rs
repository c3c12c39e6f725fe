//! Every option of every command is used by a test of the program, or by one that is named here.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Arg, Command, CommandFactory as _};

/// Options whose tests are those of another command, which has the same one, or leave naming the
/// command to a helper: the command and the option, then the test's file and its name.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    ("commit", INSECURE, MISTAKES, NO_TLS),
    ("create", INSECURE, MISTAKES, NO_TLS),
    (
        "exec",
        "env-file",
        "crates/microagent-cli/tests/vm/exec.rs",
        "settings_are_the_workspaces_unless_given",
    ),
    ("images outdated", INSECURE, MISTAKES, NO_TLS),
    ("images push", INSECURE, MISTAKES, NO_TLS),
    ("login", INSECURE, MISTAKES, NO_TLS),
    ("perf boot", "baseline", PERF, PERF_EXEC),
    ("perf boot", "plot", PERF, PERF_EXEC),
    ("perf boot", "save", PERF, PERF_EXEC),
    ("perf boot", "tolerance", PERF, PERF_EXEC),
    ("perf footprint", "backend", PERF, PERF_BOOT),
    ("perf footprint", "cpus", PERF, PERF_BOOT),
    ("perf footprint", "kernel", PERF, PERF_BOOT),
    ("perf footprint", "memory", PERF, PERF_BOOT),
    ("perf footprint", "network", PERF, PERF_BOOT),
    ("perf steady", "backend", PERF, PERF_BOOT),
    ("perf steady", "cpus", PERF, PERF_BOOT),
    ("perf steady", "kernel", PERF, PERF_BOOT),
    ("perf steady", "memory", PERF, PERF_BOOT),
    ("perf steady", "network", PERF, PERF_BOOT),
    ("perf disk", "backend", PERF, PERF_BOOT),
    ("perf disk", "baseline", PERF, PERF_EXEC),
    ("perf disk", "cpus", PERF, PERF_BOOT),
    ("perf disk", "kernel", PERF, PERF_BOOT),
    ("perf disk", "tolerance", PERF, PERF_EXEC),
    ("perf net", "backend", PERF, PERF_BOOT),
    ("perf net", "baseline", PERF, PERF_EXEC),
    ("perf net", "cpus", PERF, PERF_BOOT),
    ("perf net", "kernel", PERF, PERF_BOOT),
    ("perf net", "tolerance", PERF, PERF_EXEC),
    ("perf vsock", "backend", PERF, PERF_BOOT),
    ("perf vsock", "baseline", PERF, PERF_EXEC),
    ("perf vsock", "cpus", PERF, PERF_BOOT),
    ("perf vsock", "kernel", PERF, PERF_BOOT),
    ("perf vsock", "tolerance", PERF, PERF_EXEC),
    ("rootfs build", INSECURE, MISTAKES, NO_TLS),
    ("whoami", INSECURE, MISTAKES, NO_TLS),
];

const PERF: &str = "crates/microagent-cli/tests/vm/perf.rs";
const PERF_BOOT: &str = "a_boot_is_made_of_its_parts";
const PERF_EXEC: &str = "commands_are_measured_and_compared_and_a_machines_memory_is_seen";
const INSECURE: &str = "insecure-registry";
const MISTAKES: &str = "crates/microagent-cli/tests/registry/mistakes.rs";
const NO_TLS: &str = "no_tls_where_it_is_wanted";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The tests of the program: each function of their files, and each command line that the documents
/// show and a test runs.
fn tests() -> Vec<String> {
    let mut all = Vec::new();
    let suites = fs::read_dir(root().join("crates/microagent-cli/tests")).unwrap();
    for suite in suites {
        for file in fs::read_dir(suite.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            // What tests run in guests lies in directories beside them.
            if path.is_dir() {
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let functions = text.split("\nfn ").flat_map(|part| part.split("\n    fn "));
            all.extend(functions.map(str::to_owned));
        }
    }
    for page in ["docs/getting-started.md", "docs/concepts.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("$ "));
        all.extend(lines.map(str::to_owned));
    }
    all
}

/// Whether `text` has `word` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    text.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|at| text.as_bytes()[at]);
        let after = text.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(inner) && !after.is_some_and(inner)
    })
}

/// Whether a test that has the words of `command` has this option of it.
fn is_used(tests: &[String], command: &str, option: &Arg) -> bool {
    let long = option.get_long().map(|long| format!("--{long}"));
    let short = option.get_short().map(|short| format!("-{short}"));
    let forms: Vec<String> = long.into_iter().chain(short).collect();
    let runs =
        |test: &str| command == "run" && (test.contains(".run(") || test.contains("run_as("));
    tests.iter().any(|test| {
        (runs(test) || command.split(' ').all(|word| has_word(test, word)))
            && forms.iter().any(|form| has_word(test, form))
    })
}

/// Each command that does something, with its name and the other names it has.
fn commands(command: &Command, before: &str, each: &mut dyn FnMut(&[String], &Command)) {
    for child in command.get_subcommands() {
        if child.get_name() == "help" {
            continue;
        }
        let names = std::iter::once(child.get_name()).chain(child.get_all_aliases());
        let names: Vec<_> = names.map(|name| format!("{before}{name}")).collect();
        if child.has_subcommands() {
            commands(child, &format!("{} ", names[0]), each);
        } else {
            each(&names, child);
        }
    }
}

#[test]
fn every_option_is_used_by_a_test() {
    let tests = tests();
    assert!(tests.len() > 200, "{} pieces of tests", tests.len());
    let mut program = crate::cli::Cli::command();
    program.build();
    let (mut count, mut untested, mut listed) = (0, Vec::new(), BTreeSet::new());
    commands(&program, "", &mut |names, command| {
        let options = command.get_arguments();
        let options = options.filter(|arg| arg.get_long().is_some() && !arg.is_global_set());
        for option in options.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help") {
            count += 1;
            let long = option.get_long().unwrap();
            let entry = ELSEWHERE
                .iter()
                .find(|(command, name, ..)| *command == names[0] && *name == long);
            let used = names.iter().any(|name| is_used(&tests, name, option));
            match entry {
                Some((.., file, test)) => {
                    let text = fs::read_to_string(root().join(file)).unwrap();
                    assert!(
                        text.contains(&format!("fn {test}(")),
                        "{file} has no {test}"
                    );
                    assert!(
                        text.contains(&format!("--{long}")),
                        "{file} has no --{long}"
                    );
                    assert!(!used, "{} --{long} need not be listed", names[0]);
                    listed.insert((names[0].clone(), long.to_owned()));
                }
                None if !used => untested.push(format!("{} --{long}", names[0])),
                None => {}
            }
        }
    });
    assert!(count > 150, "{count} options");
    assert!(untested.is_empty(), "no test uses {untested:#?}");
    assert_eq!(listed.len(), ELSEWHERE.len(), "only {listed:?} are there");
}
