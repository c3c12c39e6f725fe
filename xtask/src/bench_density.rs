//! What many small machines cost that do nothing, each and together.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    bench::{Bench, Figure, median},
    bench_run::{IMAGE, processor_ticks, waits_of},
    process,
};

/// As many machines where there is memory for them.
const MACHINES: usize = 20;
/// What each of them is given room for.
const ROOM_KIB: usize = 400 * 1024;
const KIB: f64 = 1024.0;
/// How long the machines are left alone before they count as idle, and how long they are watched.
const SETTLES: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
/// Small programs again and again, and a walk through all files: each program is translated anew where
/// there is no hardware virtualization.
const WORK: &str = "for i in 1 2 3 4 5; do dpkg -l; ls -laR /usr/share; \
                    find / -xdev -type f | sort | md5sum; done >/dev/null 2>&1";

/// A program that has much memory for a moment.
const HUNGRY: &str = "head -c 150M /dev/zero | tail -c 140M >/dev/null; true";

/// The processes of a machine.
const KINDS: [&str; 3] = ["supervisor", "VMM", "passt"];

/// Memory of a process, in MiB.
#[derive(Clone, Copy)]
struct Memory {
    resident: f64,
    proportional: f64,
}

/// With the distribution's kernel.
pub(crate) fn density(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    measured(bench, None)
}

/// With the tuned kernel, which is built if need be.
pub(crate) fn density_tuned(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let kernel = crate::kernel::built(None)?;
    let install = ["--json", "kernel", "install", "--from"];
    let installed = process::output(bench.microagent().args(install).arg(kernel))?;
    let record: Value = serde_json::from_slice(&installed.stdout)?;
    let id = record["id"].as_str().context("a kernel without an id")?;
    let figures = measured(bench, Some(id));
    // The other benchmarks are of the distribution's, which is chosen; it would only lie about.
    process::output(bench.microagent().args(["kernel", "rm", id]))?;
    let mut figures = figures?;
    for figure in &mut figures {
        figure.name.insert_str(0, "tuned kernel: ");
    }
    Ok(figures)
}

fn measured(bench: &Bench, kernel: Option<&str>) -> anyhow::Result<Vec<Figure>> {
    let count = machines(bench.machines)?;
    let names: Vec<String> = (1..=count).map(|n| format!("density-{n}")).collect();
    let _gone = Gone(bench, &names);
    for name in &names {
        let mut create = bench.microagent();
        create.args(["create", "--profile", "tiny"]);
        if let Some(kernel) = kernel {
            create.args(["--kernel", kernel]);
        }
        process::output(create.args([name, IMAGE]))?;
    }
    let begun = Instant::now();
    start_all(bench, &names)?;
    let ready = begun.elapsed().as_secs_f64();
    thread::sleep(SETTLES);

    let machines = names
        .iter()
        .map(|name| processes(bench, name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut figures = vec![
        Figure::new("machines", count as f64, ""),
        Figure::new("all of them ready", ready, "s"),
        Figure::new("each ready, on average", ready / count as f64, "s"),
    ];
    let mut sums = [0.0; 2];
    for kind in KINDS {
        let memories = of_kind(&machines, kind)
            .map(memory)
            .collect::<anyhow::Result<Vec<_>>>()?;
        if memories.is_empty() {
            continue;
        }
        let resident = median(memories.iter().map(|it| it.resident).collect());
        let proportional = median(memories.iter().map(|it| it.proportional).collect());
        sums[0] += resident;
        sums[1] += proportional;
        figures.push(Figure::new(format!("{kind}, RSS"), resident, "MiB"));
        figures.push(Figure::new(format!("{kind}, PSS"), proportional, "MiB"));
    }
    figures.push(Figure::new("a machine, RSS", sums[0], "MiB"));
    figures.push(Figure::new("a machine, PSS", sums[1], "MiB"));
    let done = || -> anyhow::Result<Vec<(u64, u64)>> {
        let all = |kind| -> anyhow::Result<(u64, u64)> {
            let pids: Vec<u32> = of_kind(&machines, kind).collect();
            Ok((each(&pids, processor_ticks)?, each(&pids, waits_of)?))
        };
        KINDS.into_iter().map(all).collect()
    };
    let before = done()?;
    thread::sleep(WINDOW);
    let share = WINDOW.as_secs_f64() * count as f64;
    for ((kind, before), after) in KINDS.into_iter().zip(before).zip(done()?) {
        // Linux counts processor time in hundredths of a second.
        let (ticks, wakes) = (after.0 - before.0, after.1 - before.1);
        figures.push(Figure::new(
            format!("{kind}, of one processor"),
            ticks as f64 / share,
            "%",
        ));
        figures.push(Figure::new(
            format!("{kind}, wake-ups a second"),
            wakes as f64 / share,
            "/s",
        ));
    }
    if let (Some(name), Some(machine)) = (names.first(), machines.first()) {
        let vmm = of_kind(std::slice::from_ref(machine), "VMM").next();
        let vmm = vmm.context("a machine without a VMM")?;
        for (work, what) in [(WORK, "work"), (HUNGRY, "a hungry program")] {
            let exec = ["exec", name, "--", "sh", "-c", work];
            process::output(bench.microagent().args(exec))?;
            thread::sleep(SETTLES);
            let after = memory(vmm)?;
            figures.push(Figure::new(
                format!("VMM after {what}, PSS"),
                after.proportional,
                "MiB",
            ));
        }
    }
    Ok(figures)
}

/// How many there are room for.
fn machines(wanted: Option<usize>) -> anyhow::Result<usize> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let free: usize = info
        .lines()
        .find_map(|line| {
            let rest = line.strip_prefix("MemAvailable:")?;
            rest.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .context("/proc/meminfo has no MemAvailable")?;
    let room = free / ROOM_KIB;
    match wanted {
        Some(0) => bail!("no machines are no benchmark"),
        Some(count) if count > room => bail!("{count} machines want more memory than is available"),
        Some(count) => Ok(count),
        None if room == 0 => bail!("there is no memory for a machine"),
        None => Ok(MACHINES.min(room)),
    }
}

/// As many at a time as there are processors.
fn start_all(bench: &Bench, names: &[String]) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = process::output(bench.microagent().args(["start", name])) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    };
    let processors = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(work);
        }
    });
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// A machine's processes, by what they are.
type Processes = BTreeMap<u32, &'static str>;

fn of_kind<'a>(machines: &'a [Processes], kind: &'a str) -> impl Iterator<Item = u32> + 'a {
    let all = machines.iter().flatten();
    all.filter(move |(_, it)| **it == kind).map(|(pid, _)| *pid)
}

fn processes(bench: &Bench, name: &str) -> anyhow::Result<Processes> {
    let output = process::output(bench.microagent().args(["inspect", name]))?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let pid = |what: &str| -> anyhow::Result<u32> {
        let pid = status["processes"][what]["pid"].as_u64();
        Ok(pid
            .with_context(|| format!("{name} has no {what}"))?
            .try_into()?)
    };
    let (supervisor, vmm) = (pid("supervisor")?, pid("vmm")?);
    let mut found = Processes::from([(supervisor, KINDS[0]), (vmm, KINDS[1])]);
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process may end while it is looked at.
        let Ok(status) = fs::read_to_string(path.join("status")) else {
            continue;
        };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let parent = field("PPid:").and_then(|pid| pid.trim().parse::<u32>().ok());
        let is_passt = field("Name:").is_some_and(|name| name.trim().starts_with("passt"));
        let pid = field("Pid:").and_then(|pid| pid.trim().parse::<u32>().ok());
        if let (Some(pid), true) = (pid, is_passt && parent == Some(supervisor)) {
            found.insert(pid, KINDS[2]);
        }
    }
    Ok(found)
}

fn memory(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
            .with_context(|| format!("process {pid} has no {name}"))
    };
    Ok(Memory {
        resident: field("Rss:")? / KIB,
        proportional: field("Pss:")? / KIB,
    })
}

fn each(pids: &[u32], of: impl Fn(u32) -> anyhow::Result<u64>) -> anyhow::Result<u64> {
    pids.iter().map(|pid| of(*pid)).sum()
}

/// Removes the machines, however the benchmark ends.
struct Gone<'a>(&'a Bench, &'a [String]);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let Self(bench, names) = self;
        let deleted = process::output(bench.microagent().args(["delete", "--force"]).args(*names));
        if let Err(error) = deleted {
            eprintln!("workspaces are left: {error:#}");
        }
    }
}
