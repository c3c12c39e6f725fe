//! `cargo xtask corpus`: the whole corpus of images, and many random stacks of layers, against umoci.

use crate::{packages, process};

/// Makes what is missing and compares everything, name by name.
pub(crate) fn run(yes: bool, stacks: usize) -> anyhow::Result<()> {
    packages::install(&[packages::RUN, packages::TEST, packages::CORPUS], yes)?;
    let mut command = process::cargo();
    command
        .args(["test", "--locked", "--package", "microagent-image"])
        .args(["--test", "disk", "--", "--nocapture", "--test-threads", "1"])
        .args(["corpus::", "random::", "nasty"])
        .env(
            "MICROAGENT_TEST_CACHE",
            process::target_dir().join("test-cache"),
        )
        .env("MICROAGENT_CORPUS", "all")
        .env("MICROAGENT_STACKS", stacks.to_string());
    process::run(&mut command)
}
