//! What the command does, a Rust program does.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use testkit::Sandbox;

use crate::sandbox;

/// An example of the library, as built by the same build.
fn example(sandbox: &Sandbox, name: &str) -> Command {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_microagent"))
        .with_file_name("examples")
        .join(name);
    if !program.exists() {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--locked", "--package", "microagent", "--examples"])
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
    }
    let home = tempfile::tempdir().unwrap().keep();
    std::os::unix::fs::symlink(sandbox.state(), home.join(".microagent")).unwrap();
    let mut command = Command::new(program);
    command.env("HOME", &home);
    command
}

fn output(command: &mut Command) -> Output {
    let home = command
        .get_envs()
        .find_map(|(name, value)| (name == "HOME").then_some(value?.to_owned()))
        .unwrap();
    let output = command.output().unwrap();
    std::fs::remove_dir_all(home).unwrap();
    output
}

#[test]
fn the_first_program_runs_a_guest() {
    let sandbox = sandbox();
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_microagent"));
    let path = std::env::join_paths(
        std::iter::once(beside.parent().unwrap().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let output = output(example(&sandbox, "first_program").env("PATH", path).args([
        Sandbox::BUSYBOX,
        "sh",
        "-c",
        "echo hello; exit 6",
    ]));
    assert_eq!(
        output.status.code(),
        Some(6),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"hello\n");
}

#[test]
fn a_program_that_carries_its_supervisor_needs_no_other_file() {
    let sandbox = sandbox();
    // Alone in a directory, with nothing of ours on the PATH.
    let dir = tempfile::tempdir().unwrap();
    let mut command = example(&sandbox, "one_file");
    let alone = dir.path().join("alone");
    // Not copied by this process: another test that forks meanwhile would keep the copy open for
    // writing, and then it cannot be executed.
    let copied = Command::new("cp")
        .arg(command.get_program())
        .arg(&alone)
        .status()
        .unwrap();
    assert!(copied.success());
    let home = command
        .get_envs()
        .find_map(|(name, value)| (name == "HOME").then_some(value?.to_owned()))
        .unwrap();
    command = Command::new(alone);
    command
        .env("HOME", home)
        .args([Sandbox::BUSYBOX, "echo", "alone"]);
    let output = output(&mut command);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"alone\n");
}
