//! Every example of every `--help` is run: `examples.md` beside this file plays them, in an order that makes
//! sense, and what it does not play is named here.

use std::{collections::BTreeSet, fs, path::Path};

use testkit::{Sandbox, transcript};

use crate::scene::Scene;

/// Examples that are not played, and what shows them instead.
const ELSEWHERE: &[(&str, &str)] = &[(
    "microagent supervise web --install",
    "changes the host's systemd; `supervise::a_unit_is_written_and_removed_again` has one of its own",
)];

/// The example without what is said about it.
fn bare(line: &str) -> &str {
    line.split(" # ").next().unwrap_or(line).trim_end()
}

/// The examples in a help: the indented lines below `Examples:`.
fn examples(help: &str) -> Vec<String> {
    let (_, below) = help.split_once("\nExamples:\n").unwrap_or_default();
    let lines = below.lines().take_while(|line| line.starts_with("  "));
    lines
        .map(|line| bare(line.trim_start()).to_owned())
        .collect()
}

/// The examples of every command, asked of the program itself.
fn told(sandbox: &Sandbox) -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = fs::read_to_string(page).unwrap();
    // The page is held fresh by a test of its own: it has every command.
    let commands = page
        .lines()
        .filter_map(|line| line.strip_prefix("## `microagent"));
    let mut told = BTreeSet::new();
    for command in commands {
        let words: Vec<_> = command.trim_end_matches('`').split_whitespace().collect();
        let help = sandbox.microagent([]).words(&words).args(["--help"]);
        let help = help.run().success().out();
        told.extend(examples(&help));
    }
    told
}

#[test]
fn every_example_of_every_help() {
    let play = include_str!("examples.md");
    let scene = Scene::bare()
        .with_images(
            "server",
            &["python:3.13", "rust:1", "postgres:16", "nginx:1"],
        )
        .with_rootfs("rootfs.tar.gz")
        .with_registry(None, &["library/alpine:3"])
        .with_home()
        .with_program("pass", &format!("echo {}", transcript::PASSWORD))
        .with_program(
            "man",
            "[ -f ~/.local/share/man/man1/$1.1 ] && echo \"$1(1)\"",
        )
        .with_variable("TOKEN", "t0ken");
    let mut left = told(&scene.sandbox);
    assert!(left.len() > 80, "{left:?}");
    for (line, _) in ELSEWHERE {
        assert!(left.remove(*line), "nobody tells of {line}");
    }
    let mut wrong = String::new();
    for step in transcript::steps(play) {
        left.remove(bare(&step.command));
        let outcome = scene.step(&step);
        if outcome != Ok(0) {
            let report = outcome.map_or_else(|report| report, |code| format!("ended with {code}"));
            wrong += &format!("examples.md:{}: $ {}\n{report}\n", step.line, step.command);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(
        left.is_empty(),
        "examples that nobody runs; play them in examples.md: {left:#?}"
    );
    scene.end();
}
