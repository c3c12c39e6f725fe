//! `cargo xtask demo`: from a fresh machine to a Debian in its own microVM.

use std::{fs, process::Command, time::Instant};

use anyhow::{Context as _, bail};

use crate::{debian, install, packages, process};

const IMAGE: &str = "debian:12";
const SCRIPT: &str = "uname -a; cat /etc/os-release; id";

/// Runs every step and prints how long each took.
pub(crate) fn run(yes: bool) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    steps.step("packages", || packages::install(&[packages::RUN], yes))?;
    let microagent = steps.step("build", install::release_binary)?;
    let state = process::target_dir().join("demo/state");
    fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    let command = || {
        let mut command = Command::new(&microagent);
        command.arg("--state-dir").arg(&state);
        command
    };

    steps.step("kernel", || {
        process::run(command().args(["kernel", "install"]))
    })?;
    steps.step("doctor", || process::run(command().arg("doctor")))?;
    let tar = steps.step("make the image", debian::rootfs_tar)?;
    steps.step("import it", || {
        process::run(
            command()
                .args(["images", "import", "--name", IMAGE])
                .arg(&tar),
        )
    })?;
    let code = steps.step("run it", || {
        let mut run = command();
        run.args(["run", IMAGE, "--", "sh", "-c", SCRIPT]);
        println!("$ {}", process::shown(&run));
        let status = run.status().context("cannot start microagent")?;
        status.code().context("microagent was killed by a signal")
    })?;

    println!("\nexit code: {code}\n");
    steps.print();
    if code != 0 {
        bail!("the guest's command failed");
    }
    println!(
        "\nTry it yourself:\n  {} --state-dir {} run -it {IMAGE} bash",
        microagent.display(),
        state.display()
    );
    Ok(())
}

#[derive(Default)]
struct Steps(Vec<(&'static str, f64)>);

impl Steps {
    fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = work().with_context(|| format!("the step `{name}` failed"))?;
        self.0.push((name, start.elapsed().as_secs_f64()));
        Ok(outcome)
    }

    fn print(&self) {
        for (name, seconds) in &self.0 {
            println!("{name:<16} {seconds:>8.2} s");
        }
    }
}
