//! TAB in real shells, on a terminal: names come from the local store.

use testkit::{Invocation, Sandbox, Terminal, registry::tar_of};

use crate::sandbox;

/// A sandbox with two images whose names have a colon, one of them with a port.
fn with_images() -> Sandbox {
    let sandbox = sandbox();
    let tar = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tar.path(), tar_of(&[("a", 0o644, b"a")])).unwrap();
    sandbox.import("quail:12.7-slim", tar.path());
    let tag = ["images", "tag", "quail:12.7-slim", "127.0.0.1:5001/heron:3"];
    sandbox.microagent(tag).run().success();
    let workspaces = sandbox.state().join("workspaces");
    std::fs::create_dir(&workspaces).unwrap();
    std::fs::create_dir(workspaces.join("osprey-7")).unwrap();
    sandbox
}

/// What the hidden command says for these words.
fn offered(sandbox: &Sandbox, words: &[&str]) -> Vec<String> {
    let asked = sandbox
        .microagent(["__complete", "--", "microagent"])
        .words(words);
    let said = asked.run().success().out();
    let first = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    said.lines().map(first).collect()
}

#[test]
fn names_are_offered_where_they_fit() {
    let sandbox = with_images();
    let quail = ["quail:12.7-slim"];
    for words in [
        &["run", "qu"][..],
        &["run", "--network", "isolated", "quail:"],
        &["create", "x", "q"],
        &["run", "--image", "q"],
        &["images", "inspect", "q"],
        &["image", "rm", "x", "q"],
        &["images", "tag", "q"],
        &["images", "pull", "q"],
    ] {
        assert_eq!(offered(&sandbox, words), quail, "{words:?}");
    }
    let full = offered(&sandbox, &["run", "docker.io/lib"]);
    assert_eq!(full, ["docker.io/library/quail:12.7-slim"]);
    assert_eq!(
        offered(&sandbox, &["run", "127.0.0.1:5001/"]),
        ["127.0.0.1:5001/heron:3"]
    );
    for command in [
        "start", "delete", "exec", "connect", "logs", "status", "wait",
    ] {
        assert_eq!(
            offered(&sandbox, &[command, "osp"]),
            ["osprey-7"],
            "{command}"
        );
    }
    assert_eq!(offered(&sandbox, &["cp", "osp"]), ["osprey-7:"]);
    // The state directory of the line counts; a store that is not there has no names and is not made.
    let none = sandbox.state().join("none");
    let none_text = none.to_str().unwrap();
    assert!(offered(&sandbox, &["--state-dir", none_text, "run", "q"]).is_empty());
    assert!(!none.exists());
    assert!(offered(&sandbox, &["images", "inspect", "zzz"]).is_empty());
}

/// Types `typed`, TAB, and waits for `completed` on the line.
fn completes(terminal: &mut Terminal, typed: &str, completed: &str) {
    terminal.type_text(typed);
    terminal.type_text("\t");
    terminal.wait_for(completed);
}

/// Runs the completed line and looks for what only it prints.
fn runs(terminal: &mut Terminal) {
    terminal.type_text("\r");
    terminal.wait_for("docker.io/library/quail:12.7-slim");
}

/// A shell that finds the program under test.
fn in_path(shell: Invocation) -> Invocation {
    let beside = std::path::Path::new(env!("CARGO_BIN_EXE_microagent"));
    let beside = beside.parent().unwrap().to_str().unwrap();
    let path = format!("{beside}:{}", std::env::var("PATH").unwrap());
    shell.env("PATH", &path)
}

fn shell(sandbox: &Sandbox, program: &str, arguments: &[&str]) -> Terminal {
    in_path(sandbox.program(program))
        .words(arguments)
        .env("TERM", "xterm")
        .env("PS1", "ready> ")
        .on_terminal(40, 160)
}

#[test]
fn in_bash() {
    let sandbox = with_images();
    let mut bash = shell(&sandbox, "bash", &["--norc", "--noprofile", "-i"]);
    bash.wait_for("ready> ");
    bash.type_text("source <(microagent completions bash); echo so\"urc\"ed\r");
    bash.wait_for("sourced");
    // What the word breaks of bash would tear apart.
    completes(
        &mut bash,
        "microagent images inspect quail:12.7-s",
        "quail:12.7-slim",
    );
    runs(&mut bash);
    completes(&mut bash, "microagent images hist", "images history");
    completes(&mut bash, "127.0.0.1:5001/h", "127.0.0.1:5001/heron:3");
    bash.type_text("\r");
    bash.wait_for("STEP");
    completes(&mut bash, "microagent start osp", "start osprey-7");
    bash.type_text("\x15exit\r");
    assert!(bash.finish().is_some());
}

#[test]
fn in_zsh() {
    let sandbox = with_images();
    let mut zsh = shell(&sandbox, "zsh", &["-f", "-i"]);
    zsh.wait_for("ready> ");
    zsh.type_text("autoload -U compinit && compinit -D -u && source <(microagent completions zsh) && echo so\"urc\"ed\r");
    zsh.wait_for("sourced");
    completes(&mut zsh, "microagent images inspect quail:12.7-s", "lim");
    runs(&mut zsh);
    completes(&mut zsh, "microagent start osp", "rey-7");
    zsh.type_text("\x15exit\r");
    assert!(zsh.finish().is_some());
}

#[test]
fn in_fish() {
    // Asked for what TAB would offer: fish wants a terminal of its own for more.
    let sandbox = with_images();
    let offers = |typed: &str, wanted: &str| {
        let script =
            format!("microagent completions fish | source; complete --do-complete '{typed}'");
        let fish = in_path(sandbox.program("fish")).words(&["--no-config", "-c", &script]);
        let offered = fish.run().success();
        let first = offered.out().lines().next().map(str::to_owned);
        assert_eq!(first.as_deref(), Some(wanted), "{offered}");
    };
    offers("microagent images inspect quail:12.7-s", "quail:12.7-slim");
    offers("microagent run 127.0.0.1:5001/h", "127.0.0.1:5001/heron:3");
    offers("microagent start osp", "osprey-7");
}
