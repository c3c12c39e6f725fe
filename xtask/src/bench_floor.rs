//! What a pull could take at least: the table of `docs/design/disks.md`, step by step.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    bench::{Bench, Figure, median},
    bench_image::{clear, example},
    bench_pull::{Registry, layout},
    process,
};

/// Each step does what those before it do, too.
const STEPS: [(&str, &str); 5] = [
    ("inflate", "download and inflate"),
    ("digest", "and the two prescribed SHA-256"),
    ("keep", "and keep the layers, synced"),
    ("write", "and write content, cached"),
    ("direct", "the same past the page cache"),
];

/// Processor time and time of each step, and of a pull.
pub(crate) fn floor(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = layout(bench)?;
    let registry = Registry::start(&bench.dir().join("registry"))?;
    registry.push(&layout, "first")?;
    let program = example("floor")?;
    let layers = registry.layers("first")?;
    let state = bench.dir().join("pull-state");
    let scratch = bench.dir().join("floor-files");
    let mut columns = vec![(Vec::new(), Vec::new()); STEPS.len() + 1];
    for _ in bench.rounds() {
        for ((step, _), column) in STEPS.iter().zip(&mut columns) {
            clear(&scratch)?;
            fs::create_dir_all(&scratch)?;
            let (took, spent) = one(&program, step, &scratch, &registry, &layers)?;
            column.0.push(spent);
            column.1.push(took);
        }
        clear(&scratch)?;
        clear(&state)?;
        let pulled = registry.pull(bench, &state, "first")?;
        if let Some(column) = columns.last_mut() {
            column.0.push(pulled.processors);
            column.1.push(pulled.seconds);
        }
    }
    clear(&state)?;
    let names = STEPS.iter().map(|(_, name)| *name).chain(["a pull"]);
    let medians: Vec<(f64, f64)> = columns
        .into_iter()
        .map(|(spent, took)| (median(spent), median(took)))
        .collect();
    let (least, least_time) = *medians.first().context("no step")?;
    let mut figures = Vec::new();
    for (name, (spent, took)) in names.zip(&medians) {
        figures.push(Figure::new(format!("{name}: processors"), *spent, "s"));
        figures.push(Figure::new(
            format!("{name}: processors / first"),
            spent / least,
            "×",
        ));
        figures.push(Figure::new(
            format!("{name}: time / first"),
            took / least_time,
            "×",
        ));
    }
    Ok(figures)
}

/// What one step took, and what it took of processors.
fn one(
    program: &Path,
    step: &str,
    scratch: &Path,
    registry: &Registry,
    layers: &[String],
) -> anyhow::Result<(f64, f64)> {
    let mut command = Command::new(program);
    command
        .arg(step)
        .arg(scratch)
        .arg(registry.authority())
        .args(layers);
    let said = String::from_utf8(process::output(&mut command)?.stdout)?;
    let mut numbers = said.split_whitespace().map(str::parse::<f64>);
    let mut number = || -> anyhow::Result<f64> { Ok(numbers.next().context("no number")??) };
    Ok((number()?, number()?))
}
