//! What a workspace that stays costs: making it, and starting it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::SystemTime,
};

use anyhow::Context as _;

use crate::{
    bench::{Bench, Figure, median, seconds},
    bench_run, process,
};

const MIB: f64 = 1024.0 * 1024.0;

/// A workspace is made this often, as it takes so little time.
const CREATES: usize = 15;

/// `create` from images that are there, a small one and a large one.
pub(crate) fn create(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, mebibytes) in [("10 MB", 10), ("2 GB", 2048)] {
        let image = image(bench, mebibytes)?;
        let mut times = Vec::new();
        let mut sizes = Vec::new();
        for _ in 0..CREATES {
            times.push(seconds(
                bench.microagent().args(["create", "bench", &image]),
            )?);
            sizes.push(allocated(&bench.state().join("workspaces/bench"))? as f64 / MIB);
            process::output(bench.microagent().args(["delete", "bench"]))?;
        }
        figures.push(
            Figure::new(
                format!("create from a {name} image, median"),
                median(times) * 1000.0,
                "ms",
            )
            .at_most(30.0),
        );
        figures.push(
            Figure::new(
                format!("a workspace of a {name} image, on disk"),
                median(sizes),
                "MiB",
            )
            .at_most(2.0),
        );
    }
    Ok(figures)
}

/// `start` to exec-ready, when a process was seen to run in the guest, against the least that the same VMM, kernel and
/// initramfs need to reach user space and end.
pub(crate) fn start_against_bare_boot(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let arguments = bench_run::bare_arguments(bench)?;
    process::output(
        bench
            .microagent()
            .args(["create", "bench", bench_run::IMAGE]),
    )?;
    let mut ours = Vec::new();
    let mut command = Vec::new();
    let mut bare = Vec::new();
    for _ in bench.rounds() {
        bare.push(seconds(
            Command::new("qemu-system-x86_64").args(&arguments),
        )?);
        let begun = SystemTime::now();
        let started = process::output(bench.microagent().args(["start", "--json", "bench"]))?;
        command.push(begun.elapsed()?.as_secs_f64());
        ours.push(exec_ready(&started)?.duration_since(begun)?.as_secs_f64());
        process::output(bench.microagent().args(["kill", "bench"]))?;
    }
    process::output(bench.microagent().args(["delete", "bench"]))?;
    let (ours, bare) = (median(ours), median(bare));
    Ok(vec![
        Figure::new("bare QEMU boot to user space and end, median", bare, "s"),
        Figure::new("start until a process ran in the guest, median", ours, "s"),
        Figure::new("start, the whole command, median", median(command), "s"),
        Figure::new("start / bare boot", ours / bare, "×").at_most(1.25),
    ])
}

/// When the workspace whose start that was could run processes.
pub(crate) fn exec_ready(started: &Output) -> anyhow::Result<SystemTime> {
    let report: serde_json::Value = serde_json::from_slice(&started.stdout)
        .context("understand what `start --json` printed")?;
    let at = report["readiness"]["execReady"]["observed_at"]
        .as_str()
        .context("`start` saw no process run in the guest")?;
    humantime::parse_rfc3339(at).with_context(|| format!("{at:?} is no time"))
}

/// What a directory's files take on the disk.
fn allocated(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// An image with so many MiB of content that no disk can leave out.
fn image(bench: &Bench, mebibytes: u32) -> anyhow::Result<String> {
    let name = format!("filled:{mebibytes}");
    let known = bench
        .microagent()
        .args(["images", "inspect", &name])
        .output()
        .context("microagent images inspect")?;
    if known.status.success() {
        return Ok(name);
    }
    let root = bench.dir().join("filled");
    let tar = filled_tar(&root, mebibytes)?;
    process::output(
        bench
            .microagent()
            .args(["images", "import", "--name", &name])
            .arg(&tar),
    )?;
    fs::remove_file(&tar)?;
    fs::remove_dir_all(&root)?;
    Ok(name)
}

fn filled_tar(root: &Path, mebibytes: u32) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("busybox-static is not installed")?;
    let mut file = fs::File::create(root.join("filling"))?;
    let mut block = vec![0_u8; 1 << 20];
    for number in 0..mebibytes {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at as u32).wrapping_mul(2_654_435_761).wrapping_add(number) as u8;
        }
        file.write_all(&block)?;
    }
    drop(file);
    let tar = root.with_extension("tar");
    process::output(
        Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(root)
            .arg("."),
    )?;
    Ok(tar)
}
