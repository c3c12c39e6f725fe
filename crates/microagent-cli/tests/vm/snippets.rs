//! The Rust that the documents show, as a program would have it: that it compiles is the test, and
//! that it is what they show.
#![allow(
    dead_code,
    unused_variables,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "it is compiled and not run"
)]

use std::{error::Error, path::PathBuf};

use microagent::{ArtifactState, ExecOptions, LineOptions, Microagent, RunIo, RunOptions};

type Outcome = Result<(), Box<dyn Error>>;

#[rustfmt::skip]
fn readme(state_dir: PathBuf, runtime_dir: PathBuf, executable: PathBuf) -> Outcome {
use microagent::{Config, Microagent, RunIo, RunOptions, SupervisorProgram};

let config = Config::new(state_dir, runtime_dir, SupervisorProgram::At(executable));
let options = RunOptions::new("debian:12").command(["uname", "-a"]);
let result = Microagent::new(config).run(&options, RunIo::captured())?;
println!("{} (exit code {})", result.stdout.data, result.exit_code);
    Ok(())
}

#[rustfmt::skip]
fn first_program() -> Outcome {
use microagent::{Config, Microagent, RunIo, RunOptions, SupervisorProgram};

let supervisor = SupervisorProgram::find(None, std::env::var_os("PATH").as_deref())?;
let config = Config::new("/var/lib/agents", "/run/agents", supervisor);
let options = RunOptions::new("debian:12").command(["uname", "-a"]).env("GREETING", "hello");
let result = Microagent::new(config).run(&options, RunIo::captured())?;
println!("{} (exit code {})", result.stdout.data, result.exit_code);
    Ok(())
}

#[rustfmt::skip]
mod own_supervisor {
fn main() {
    microagent_supervisor::entry(); // returns unless this process is to be a supervisor
    let supervisor = microagent::SupervisorProgram::ThisProgram;
    // …
}
}

#[rustfmt::skip]
fn wiring() -> Result<RunOptions, Box<dyn Error>> {
let options = RunOptions::new("debian:12")
    .volume("/srv/data.tar.gz:/data".parse()?) // read-only; an archive becomes a disk
    .volume("/srv/cache.ext4:/var/cache:rw".parse()?)
    .publish("0:80".parse()?) // 0 picks a port
    .mediation("2048=127.0.0.1:9900".parse()?);
    Ok(options)
}

#[rustfmt::skip]
fn what_comes_out(microagent: &Microagent) -> Outcome {
let options = RunOptions::new("debian:12")
    .shell("make -C /src report > /out/report.txt")
    .output("report=/out/report.txt".parse()?)
    .artifacts_dir("/srv/results");
let result = microagent.run(&options, RunIo::captured())?;
for artifact in &result.artifacts {
    match &artifact.state {
        ArtifactState::Present { size_bytes, sha256, .. } => println!("{size_bytes} {sha256}"),
        ArtifactState::Missing { error } => eprintln!("{}: {}", artifact.name, error.message),
    }
}
    Ok(())
}

#[rustfmt::skip]
fn in_a_workspace(microagent: &Microagent) -> Outcome {
let workspace = microagent.workspaces().open("web")?;
let result = workspace.exec(&ExecOptions::new(["make", "test"]).workdir("/src"), RunIo::captured())?;
let line = workspace.shell_line(&LineOptions::new("cd /src && git status"), RunIo::captured())?;
    drop((result, line));
    Ok(())
}

#[test]
fn the_rust_that_is_shown_compiles() {
    let here = include_str!("snippets.rs");
    let mut shown = 0;
    for (name, page) in [
        ("README.md", include_str!("../../../../README.md")),
        (
            "docs/library.md",
            include_str!("../../../../docs/library.md"),
        ),
    ] {
        for block in page.split("```rust\n").skip(1) {
            let (snippet, _) = block.split_once("```").unwrap();
            assert!(
                here.contains(snippet),
                "{name} shows what is not compiled here; add it to this file:\n{snippet}"
            );
            shown += 1;
        }
    }
    assert!(shown >= 5, "{shown} snippets");
}
