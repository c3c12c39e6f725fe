//! `docs/cli.md`, written from the definitions that parse the command line.

use clap::Command;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");

fn page() -> String {
    let mut page = String::from(
        "# Command line\n\n\
         Written from the program's own `--help`; a test keeps it so. Exit codes and JSON are in\n\
         [json.md](json.md). Every command takes the options of `microagent` too.\n",
    );
    let mut program = crate::help::program().term_width(100);
    program.build();
    section(&mut page, &mut program, "microagent");
    page
}

fn section(page: &mut String, command: &mut Command, name: &str) {
    let help = shown(command).render_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    page.push_str(&format!(
        "\n## `{name}`\n\n```\n{}\n```\n",
        lines.join("\n").trim_end()
    ));
    for child in command.get_subcommands_mut() {
        if child.get_name() != "help" && !child.is_hide_set() {
            let name = format!("{name} {}", child.get_name());
            section(page, child, &name);
        }
    }
}

/// A command without the options of all commands, which the first section tells.
fn shown(command: &Command) -> Command {
    let own = command.clone();
    if command.get_name() == "microagent" {
        return own;
    }
    own.mut_args(|arg| match arg.is_global_set() {
        true => arg.hide(true),
        false => arg,
    })
}

#[test]
fn the_reference_is_fresh() {
    let page = page();
    if std::env::var_os("MICROAGENT_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &page).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == page,
        "docs/cli.md is stale; write it again: MICROAGENT_WRITE_DOCS=1 cargo test -p microagent-cli reference"
    );
}
