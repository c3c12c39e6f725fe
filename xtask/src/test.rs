//! `cargo xtask test`: every test, in the order that finds a mistake soonest.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    conformance, debian, fuzz, packages,
    process::{self, Place},
    targets,
    test_beside::Beside,
};

/// Tests that boot machines or start servers run few at a time: they share the host's cores.
const THREADS: &str = "2";

/// Names the file in which tests note what they could not run here (`testkit`'s `skips`).
const SKIPS: &str = "MICROAGENT_TEST_SKIPS";

/// The package whose integration tests boot machines through the command.
const COMMAND: &str = "microagent-cli";

struct Stage {
    name: &'static str,
    work: Work,
}

enum Work {
    /// Ends soon, and finds most mistakes.
    Check(fn() -> anyhow::Result<()>),
    /// Runs tests, which wait for machines and disks half of the time.
    Test(fn(&mut Tally) -> anyhow::Result<()>),
    /// Compiles, which fills the time that tests wait, and then runs what it compiled.
    Compile(fn(&Place) -> anyhow::Result<()>, fn() -> anyhow::Result<()>),
}

const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        work: Work::Check(|| process::run(process::cargo().args(["fmt", "--all", "--check"]))),
    },
    Stage {
        name: "clippy",
        work: Work::Check(clippy),
    },
    Stage {
        name: "docs",
        work: Work::Check(docs),
    },
    Stage {
        name: "unit",
        work: Work::Test(unit),
    },
    Stage {
        name: "vm",
        work: Work::Test(vm),
    },
    Stage {
        name: "targets",
        work: Work::Compile(|place| targets::check_all(place, None), || Ok(())),
    },
    Stage {
        name: "fuzz",
        work: Work::Compile(fuzz::build, fuzz::try_all),
    },
];

fn clippy() -> anyhow::Result<()> {
    process::run(process::cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn docs() -> anyhow::Result<()> {
    process::run(
        process::cargo()
            .args([
                "doc",
                "--locked",
                "--workspace",
                // The doc comments of the command line are its help, not Markdown.
                "--exclude",
                COMMAND,
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// All that does not boot machines through the command.
fn unit(tally: &mut Tally) -> anyhow::Result<()> {
    let mut selection = vec!["--lib".to_owned(), "--bins".to_owned()];
    selection.extend(integration_tests(|package| package != COMMAND)?);
    build()?;
    let programs = tests(tally, &selection);
    tests(tally, &["--doc".to_owned()]).and(programs)
}

fn vm(tally: &mut Tally) -> anyhow::Result<()> {
    let selection = integration_tests(|package| package == COMMAND)?;
    build()?;
    tests(tally, &selection)
}

/// Compiles every test, and the examples that tests run.
///
/// Always the whole workspace: cargo chooses the features of dependencies for the packages that are selected, so
/// another selection would compile most of them again.
fn build() -> anyhow::Result<()> {
    process::run(process::cargo().args(["test", "--locked", "--no-run", "--workspace"]))
}

/// `--test` and the name of each integration test of the packages that are wanted.
fn integration_tests(wanted: fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let metadata = process::output(process::cargo().args([
        "metadata",
        "--locked",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut arguments = Vec::new();
    let mut others = BTreeSet::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let (Some(package), Some(name)) = (package["name"].as_str(), target["name"].as_str())
            else {
                bail!("cargo lists a target without a name");
            };
            if target["kind"][0] != "test" {
                continue;
            }
            if wanted(package) {
                arguments.extend(["--test".to_owned(), name.to_owned()]);
            } else {
                others.insert(name.to_owned());
            }
        }
    }
    if let Some(both) = arguments.iter().find(|name| others.contains(*name)) {
        bail!("there are two integration tests {both:?}; cargo could not tell them apart");
    }
    Ok(arguments)
}

/// Runs the named stages, or all.
pub(crate) fn run(yes: bool, only: &[String]) -> anyhow::Result<()> {
    if let Some(unknown) = only
        .iter()
        .find(|name| !STAGES.iter().any(|stage| stage.name == **name))
    {
        let known: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
        bail!(
            "{unknown:?} is not a stage; the stages are {}",
            known.join(", ")
        );
    }
    let start = Instant::now();
    let needed = [
        packages::RUN,
        packages::TEST,
        // `kernel build` is tested with a source package that is small.
        packages::KERNEL,
        packages::TARGETS,
    ];
    packages::install(&needed, yes)?;
    debian::rootfs_tar()?;

    let noted = process::target_dir().join("not-run.txt");
    fs::write(&noted, "").with_context(|| format!("cannot write {}", noted.display()))?;
    let mut tally = Tally::default();
    let mut lines = Vec::new();
    let stages = STAGES
        .iter()
        .filter(|stage| only.is_empty() || only.iter().any(|wanted| wanted == stage.name));
    let mut beside = None;
    for stage in stages.clone() {
        println!("\n== {}", stage.name);
        let began = Instant::now();
        let outcome = match stage.work {
            Work::Check(check) => check(),
            Work::Test(test) => {
                if beside.is_none() {
                    let compiled = stages.clone().filter_map(|stage| match stage.work {
                        Work::Compile(compile, _) => Some((stage.name, compile)),
                        _ => None,
                    });
                    beside = Some(Beside::start(compiled.collect()));
                }
                test(&mut tally)
            }
            Work::Compile(compile, try_it) => match &beside {
                Some(beside) => beside.finish(),
                None => compile(&Place::Here),
            }
            .and_then(|()| try_it()),
        };
        lines.push(format!(
            "{:<8} {:>8.1} s",
            stage.name,
            began.elapsed().as_secs_f64()
        ));
        if let Err(error) = outcome {
            tally.broken.push(format!("{}: {error:#}", stage.name));
        }
    }

    tally.noted(
        &fs::read_to_string(&noted).with_context(|| format!("cannot read {}", noted.display()))?,
    )?;
    println!("\n{}", lines.join("\n"));
    println!("wall time {:>7.1} s\n", start.elapsed().as_secs_f64());
    for reason in &tally.skips {
        println!("skipped: {reason}");
    }
    for reason in &tally.parts {
        println!("not run in part: {reason}");
    }
    for reason in &tally.broken {
        println!("failed: {reason}");
    }
    println!(
        "{} passed ({} of them without a part), {} failed, {} skipped",
        tally.passed,
        tally.parts.len(),
        tally.failed,
        tally.skipped
    );
    if tally.broken.is_empty() && tally.failed == 0 {
        Ok(())
    } else {
        bail!("some tests failed")
    }
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    skips: BTreeSet<String>,
    /// What tests that passed did not run.
    parts: BTreeSet<String>,
    broken: Vec<String>,
}

impl Tally {
    /// Reads one line of the test runner's.
    fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |word: &str| {
                counts
                    .split("; ")
                    .flat_map(|part| part.split(". "))
                    .find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.passed += count(" passed");
            self.failed += count(" failed");
            self.skipped += count(" ignored");
        } else if let Some((name, reason)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            self.skips.insert(format!("{name}{reason}"));
        }
    }

    /// Counts what tests noted: one that stopped has not passed, whatever the runner says.
    fn noted(&mut self, notes: &str) -> anyhow::Result<()> {
        for note in notes.lines() {
            if let Some(test) = note.strip_prefix("test ") {
                self.skips.insert(test.to_owned());
                self.skipped += 1;
                self.passed = self.passed.saturating_sub(1);
            } else if let Some(part) = note.strip_prefix("part ") {
                self.parts.insert(part.to_owned());
            } else {
                bail!("{note:?} is no note of a test");
            }
        }
        Ok(())
    }
}

fn tests(tally: &mut Tally, selection: &[String]) -> anyhow::Result<()> {
    let mut command = process::cargo();
    command
        .args(["test", "--locked", "--no-fail-fast", "--workspace"])
        .args(selection)
        .args(["--", "--test-threads", THREADS])
        .env(
            "MICROAGENT_TEST_CACHE",
            process::target_dir().join("test-cache"),
        )
        .env(SKIPS, process::target_dir().join("not-run.txt"))
        .stdout(Stdio::piped());
    if let Some(kernel) = conformance::kernel()? {
        command.env(conformance::KERNEL, kernel);
    }
    println!("$ {}", process::shown(&command));
    run_tests(tally, &mut command)
}

fn run_tests(tally: &mut Tally, command: &mut Command) -> anyhow::Result<()> {
    let mut child = command.spawn().context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        tally.line(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}", process::shown(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_and_skips_are_counted() {
        let mut tally = Tally::default();
        tally.line("test result: ok. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        tally.line("test soak ... ignored, takes an hour");
        assert_eq!((tally.passed, tally.failed, tally.skipped), (12, 1, 2));
        assert_eq!(
            tally.skips.first().map(String::as_str),
            Some("soak, takes an hour")
        );
    }

    #[test]
    fn a_test_that_stopped_has_not_passed() {
        let mut tally = Tally::default();
        tally.line("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured");
        tally
            .noted("test boots, no KVM\npart fetches, IPv6: no way out\n")
            .unwrap();
        assert_eq!((tally.passed, tally.skipped), (2, 1));
        assert!(tally.skips.contains("boots, no KVM"));
        assert!(tally.parts.contains("fetches, IPv6: no way out"));
        assert!(tally.noted("nonsense\n").is_err());
    }
}
