//! `cargo xtask corpus`: the whole corpus of images, and many random stacks of layers, against umoci.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};

use crate::{packages, process};

/// What must be compared for a run to count.
const IMAGES_OF_PACKAGES: usize = 12;
const TOOLS: usize = 6;

/// Makes what is missing and compares everything, name by name. Says at the end what was compared.
pub(crate) fn run(yes: bool, stacks: usize, seed: u64) -> anyhow::Result<()> {
    packages::install(&[packages::RUN, packages::TEST, packages::CORPUS], yes)?;
    let begun = Instant::now();
    let mut command = process::cargo();
    command
        .args(["test", "--locked", "--package", "microagent-image"])
        .args(["--test", "disk", "--", "--nocapture", "--test-threads", "1"])
        .args(["corpus::", "random::", "nasty_image"])
        .env(
            "MICROAGENT_TEST_CACHE",
            process::target_dir().join("test-cache"),
        )
        .env("MICROAGENT_CORPUS", "all")
        .env("MICROAGENT_STACKS", stacks.to_string())
        .env("MICROAGENT_SEED", seed.to_string())
        .stdout(Stdio::piped());
    println!("$ {}", process::shown(&command));
    let mut child = command.spawn().context("cannot start cargo")?;
    let said = child.stdout.take().context("no standard output")?;
    let mut compared = Compared::default();
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what the tests say")?;
        println!("{line}");
        compared.hear(&line);
    }
    let ended = child.wait()?;
    println!(
        "\ncorpus: {} images ({} of packages, by {}), {} random stacks, {} nasty fixture; {:.1} minutes",
        compared.images,
        compared.of_packages,
        Vec::from_iter(compared.tools.iter().map(String::as_str)).join(", "),
        compared.stacks,
        compared.nasty,
        begun.elapsed().as_secs_f64() / 60.0
    );
    ensure!(
        ended.success(),
        "not everything is as umoci unpacks it: {ended}; see the lines with WRONG and the panics above"
    );
    compared.is_enough(stacks)
}

/// What the tests said they compared and found the same.
#[derive(Default)]
struct Compared {
    images: usize,
    of_packages: usize,
    /// The tools that made images of packages.
    tools: BTreeSet<String>,
    nasty: usize,
    stacks: usize,
}

impl Compared {
    fn hear(&mut self, line: &str) {
        let Some(what) = line.strip_prefix("corpus: ") else {
            return;
        };
        if let Some((_, rest)) = what
            .strip_prefix("image ")
            .and_then(|what| what.split_once(", of "))
        {
            self.images += 1;
            if let Some(by) = rest.strip_prefix("packages, by ") {
                self.of_packages += 1;
                let tool = by.split([' ', ':']).next().unwrap_or_default();
                self.tools.insert(tool.to_owned());
            }
        } else if what.starts_with("the nasty fixture") {
            self.nasty += 1;
        } else if let Some(stacks) = what.strip_prefix("stacks: ") {
            let count = stacks.split(' ').next().unwrap_or_default();
            self.stacks += count.parse::<usize>().unwrap_or(0);
        }
    }

    /// Fails if something was passed over: a run that compares nothing must not look like a good one.
    fn is_enough(&self, stacks: usize) -> anyhow::Result<()> {
        if self.of_packages < IMAGES_OF_PACKAGES || self.tools.len() < TOOLS {
            bail!(
                "only {} images of packages by {} tools were compared; {IMAGES_OF_PACKAGES} by {TOOLS} are wanted",
                self.of_packages,
                self.tools.len()
            );
        }
        ensure!(self.nasty > 0, "the nasty fixture was not compared");
        ensure!(
            self.stacks >= stacks,
            "only {} of {stacks} random stacks were compared",
            self.stacks
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_compared_is_missed() {
        let mut compared = Compared::default();
        for tool in ["umoci", "umoci repack", "a", "b", "c", "d", "e"] {
            for _ in 0..2 {
                compared.hear(&format!("corpus: image x, of packages, by {tool}: 3 names"));
            }
        }
        compared.hear("corpus: image x, of a program, by GNU tar: 3 names");
        compared.hear("corpus: WRONG y: 1 differences:");
        compared.hear("corpus: stacks: 300 of the kept seeds (0) and of 0 to 5, 9 names the same");
        assert_eq!(
            (compared.images, compared.of_packages, compared.tools.len()),
            (15, 14, 6)
        );
        assert!(compared.is_enough(300).is_err(), "without the fixture");
        compared.hear("corpus: the nasty fixture: 9 names the same");
        assert!(compared.is_enough(300).is_ok() && compared.is_enough(301).is_err());
        assert!(Compared::default().is_enough(0).is_err());
    }
}
