//! Coverage-guided fuzzing with libFuzzer and the ordinary compiler.
//!
//! Our code has no unsafe Rust where it decodes, so no sanitizer is needed and
//! the stable compiler's coverage pass is enough.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::process::{self, Place};

/// How long CI runs each target: those longer that read what a guest or a layer says.
const CI_SECONDS: u32 = 30;
const CI_LONGER_SECONDS: u32 = 60;
const CI_LONGER: &[&str] = &["guest_frames", "layer", "pack", "supervisor_frames"];

const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1";

/// Builds the targets, into the build directory of everything else: what runs on the host while it builds is the
/// same, and so is the guest agent.
pub(crate) fn build(place: &Place) -> anyhow::Result<()> {
    place.run(
        process::cargo()
            .args([
                "build",
                "--release",
                "--locked",
                "--bins",
                "--manifest-path",
            ])
            .arg(source().join("Cargo.toml"))
            .args(["--target", &host_target()?])
            .env("RUSTFLAGS", COVERAGE)
            .env("CARGO_TARGET_DIR", process::target_dir()),
    )
}

fn source() -> PathBuf {
    process::root().join("fuzz")
}

/// Where findings and logs go.
fn found_dir() -> PathBuf {
    process::target_dir().join("fuzz")
}

/// Builds the targets and runs each, or the named one, for `seconds`; two side by side.
pub(crate) fn run(only: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let names = names(only)?;
    build(&Place::Here)?;
    try_built(names, Some(seconds))
}

/// Runs each of the targets, which are built, as long as CI does.
pub(crate) fn try_all() -> anyhow::Result<()> {
    try_built(names(None)?, None)
}

fn names(only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(source().join("targets"))? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a fuzz target has a strange name")?;
        if only.is_none_or(|only| only == name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        bail!("there is no such fuzz target; see fuzz/targets");
    }
    Ok(names)
}

fn try_built(mut names: Vec<String>, seconds: Option<u32>) -> anyhow::Result<()> {
    let dir = source();
    let found_dir = found_dir();
    let seconds_of = |name: &str| {
        seconds.unwrap_or(match CI_LONGER.contains(&name) {
            true => CI_LONGER_SECONDS,
            false => CI_SECONDS,
        })
    };
    // Those that take equally long side by side.
    names.sort_by_key(|name| (std::cmp::Reverse(seconds_of(name)), name.clone()));
    let bin = process::target_dir().join(host_target()?).join("release");
    let memory = Memory::new()?;
    for pair in names.chunks(2) {
        let mut running = Vec::new();
        for name in pair {
            // New findings go to the build directory; the kept corpus is only read.
            let found = found_dir.join("corpus").join(name);
            fs::create_dir_all(&found)?;
            let kept = dir.join("corpus").join(name);
            let mut command = Command::new(bin.join(name));
            command
                .arg(format!("-max_total_time={}", seconds_of(name)))
                .args([
                    "-rss_limit_mb=1024",
                    "-timeout=10",
                    "-print_final_stats=1",
                    "-verbosity=0",
                ])
                .arg(format!("-artifact_prefix={}/{name}-", found_dir.display()))
                .arg(&found);
            if kept.is_dir() {
                command.arg(&kept);
            }
            command.env("TMPDIR", &memory.0);
            let log = found_dir.join(format!("{name}.log"));
            command.stderr(fs::File::create(&log)?);
            println!("$ {}", process::shown(&command));
            let child = command
                .spawn()
                .with_context(|| format!("cannot start {name}"))?;
            running.push((name, log, child));
        }
        for (name, log, mut child) in running {
            let status = child.wait()?;
            let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
            let said = String::from_utf8_lossy(&said);
            if !status.success() {
                let last: Vec<_> = said.lines().rev().take(40).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                bail!(
                    "fuzz target {name} found something; {}:\n{}",
                    log.display(),
                    last.join("\n")
                );
            }
            let inputs = said
                .lines()
                .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            println!(
                "{name}: {} inputs, nothing found",
                inputs.unwrap_or("unknown").trim()
            );
        }
    }
    Ok(())
}

/// A directory for what targets write, in memory where there is such a place; gone afterwards.
struct Memory(PathBuf);

impl Memory {
    fn new() -> anyhow::Result<Self> {
        let shared = Path::new("/dev/shm");
        let base = match shared.is_dir() {
            true => shared.to_owned(),
            false => std::env::temp_dir(),
        };
        let directory = base.join(format!("microagent-fuzz-{}", std::process::id()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self(directory))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A rest in memory is gone with the next boot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn host_target() -> anyhow::Result<String> {
    let output = process::output(Command::new("rustc").arg("-vV"))?;
    String::from_utf8(output.stdout)?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("rustc does not tell its host")
}
