//! What it costs to get an image of very many small files from a registry to a disk.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    bench::{Bench, Figure, median, seconds},
    bench_image::{clear, oci_layout},
    bench_pull::{MIB, Registry, allocated},
    process,
};

const FILES: usize = 100_000;
const IN_A_DIRECTORY: usize = 200;
/// Making the image takes half a minute; a tool that hangs is not waited for.
const SETUP: Duration = Duration::from_secs(300);

/// A pull of an image of 100,000 files, and a `create` right after it. The other tools take minutes for one.
pub(crate) fn pull_many_files(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = layout(bench)?;
    let registry = Registry::start(&bench.dir().join("files-registry"))?;
    registry.push(&layout, "many")?;
    let state = bench.dir().join("files-state");
    let (mut ours, mut create, mut theirs, mut peak, mut disk) = (vec![], vec![], vec![], 0, 0);
    for _ in bench.rounds() {
        clear(&state)?;
        let pulled = registry.pull(bench, &state, "many")?;
        ours.push(pulled.seconds);
        peak = peak.max(pulled.peak);
        disk = allocated(&state.join("images/disks"))?;
        // The first workspace of all installs the kernel, too.
        seconds(bench.microagent_on(&state).args(["kernel", "install"]))?;
        create.push(seconds(bench.microagent_on(&state).args([
            "create",
            "--pull",
            "never",
            "many",
            &registry.reference("many"),
        ]))?);
        clear(&state)?;
        theirs.push(registry.with_other_tools(bench, "many")?);
    }
    println!("rounds: {}", ours.len());
    let (ours, theirs) = (median(ours), median(theirs));
    Ok(vec![
        Figure::new(
            "100,000 files: skopeo + umoci + mke2fs, median",
            theirs,
            "s",
        ),
        Figure::new("images pull of 100,000 files, median", ours, "s"),
        Figure::new("100,000 files: pull / other tools", ours / theirs, "×").at_most(1.0 / 6.0),
        Figure::new(
            "100,000 files: peak memory of the pull",
            peak as f64 / MIB,
            "MiB",
        )
        .at_most(150.0),
        Figure::new("100,000 files: disk", disk as f64 / MIB, "MiB"),
        Figure::new(
            "100,000 files: create right after, median",
            median(create),
            "s",
        ),
    ])
}

/// An OCI layout with the image `many`: a Debian, and a layer of many small files.
fn layout(bench: &Bench) -> anyhow::Result<PathBuf> {
    let layout = bench.dir().join("files-layout");
    let done = layout.join("complete");
    if done.exists() {
        return Ok(layout);
    }
    let begun = Instant::now();
    clear(&layout)?;
    let debian = oci_layout(bench)?;
    let tree = bench.dir().join("files-tree");
    clear(&tree)?;
    let mut folder = tree.clone();
    for at in 0..FILES {
        if at % IN_A_DIRECTORY == 0 {
            folder = tree.join(format!("{:03}", at / IN_A_DIRECTORY));
            fs::create_dir_all(&folder)?;
        }
        let content = format!("{at}\n").repeat(at % 300);
        fs::write(folder.join(format!("{at}.txt")), content)?;
    }
    let within = |command: &mut Command| {
        let left = SETUP.saturating_sub(begun.elapsed());
        process::run_within(command, left).context("making the image of 100,000 files")
    };
    let of = |tag: &str| format!("{}:{tag}", layout.display());
    within(
        Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci:{}:12", debian.display()))
            .arg(format!("oci:{}", of("base"))),
    )?;
    within(
        Command::new("umoci")
            .args(["insert", "--image", &of("base"), "--tag", "many"])
            .arg(&tree)
            .arg("/opt/many"),
    )?;
    clear(&tree)?;
    fs::write(&done, "")?;
    println!(
        "the image was made in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(layout)
}
