//! What the first start costs after a pull, when files must be hashed and are not in the host's memory.

use std::{fs, path::Path, process::Command, time::SystemTime};

use anyhow::Context as _;

use crate::{
    bench::{Bench, Figure, median},
    bench_image::clear,
    bench_pull::{Registry, layout},
    bench_workspace::exec_ready,
    process,
};

/// Asks the kernel to forget what it read of files.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// `start` until a process ran in the guest: right after a pull, the same with nothing of files in memory, again
/// (nothing is hashed then), and again with nothing in memory. Of a Debian, and of 1 GB in 5 layers.
pub(crate) fn first_start(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = layout(bench)?;
    let registry = Registry::start(&bench.dir().join("registry"))?;
    let state = bench.dir().join("first-state");
    let mut figures = Vec::new();
    for (tag, name) in [("base", "a Debian"), ("first", "1 GB")] {
        registry.push(&layout, tag)?;
        let image = registry.reference(tag);
        let mut columns: [Vec<f64>; 4] = Default::default();
        for _ in bench.rounds() {
            pulled(bench, &state, &image)?;
            let after_pull = start(bench, &state)?;
            let warm = start(bench, &state)?;
            drop_caches()?;
            let known = start(bench, &state)?;
            pulled(bench, &state, &image)?;
            drop_caches()?;
            let cold = start(bench, &state)?;
            for (column, value) in columns.iter_mut().zip([after_pull, cold, warm, known]) {
                column.push(value);
            }
        }
        let [after_pull, cold, warm, known] = columns.map(median);
        figures.extend([
            Figure::new(
                format!("{name}: start right after its pull"),
                after_pull,
                "s",
            ),
            Figure::new(format!("{name}: the same, caches dropped"), cold, "s"),
            Figure::new(format!("{name}: start again"), warm, "s"),
            Figure::new(format!("{name}: again, caches dropped"), known, "s"),
            Figure::new(
                format!("{name}: after its pull / again"),
                after_pull / warm,
                "×",
            ),
        ]);
    }
    clear(&state)?;
    Ok(figures)
}

/// A state directory with a kernel, the image and a workspace of it, and nothing else.
fn pulled(bench: &Bench, state: &Path, image: &str) -> anyhow::Result<()> {
    clear(state)?;
    for words in [
        &["kernel", "install"][..],
        &["images", "pull", image],
        &["create", "--pull", "never", "bench", image],
    ] {
        process::output(bench.microagent_on(state).args(words))?;
    }
    Ok(())
}

/// How long a start took until a process ran in the guest, in seconds. The machine is gone afterwards.
fn start(bench: &Bench, state: &Path) -> anyhow::Result<f64> {
    let begun = SystemTime::now();
    let started = process::output(
        bench
            .microagent_on(state)
            .args(["start", "--json", "bench"]),
    )?;
    let ready = exec_ready(&started)?.duration_since(begun)?;
    process::output(bench.microagent_on(state).args(["kill", "bench"]))?;
    Ok(ready.as_secs_f64())
}

/// Drops what memory holds of files. What is not on the disk yet cannot be dropped, so it is written first.
fn drop_caches() -> anyhow::Result<()> {
    process::output(&mut Command::new("sync"))?;
    fs::write(DROP_CACHES, "3")
        .with_context(|| format!("{DROP_CACHES} cannot be written; run this benchmark as root"))
}
