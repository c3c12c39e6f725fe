//! What a run costs: time, memory, bytes.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bench::{Bench, Figure, median, seconds},
    process,
};

const MIB: f64 = 1024.0 * 1024.0;
const KIB: f64 = 1024.0;
pub(crate) const IMAGE: &str = "debian:12";
/// A bare boot takes a few seconds under emulation.
const BARE_BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// How long a started machine is left alone before it counts as idle, and how long it is watched.
const IDLE_SETTLES: Duration = Duration::from_secs(4);
const IDLE_WINDOW: Duration = Duration::from_secs(20);

/// Sizes of what every machine carries.
pub(crate) fn sizes(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let guest = find_file(&process::target_dir().join("guest"), "microagent-guest")?;
    let running = Running::start(bench)?;
    let initramfs = running.value_of("-initrd")?;
    Ok(vec![
        Figure::new("guest binary", bytes(&guest)? / MIB, "MiB").at_most(2.0),
        Figure::new("initramfs", bytes(Path::new(&initramfs))? / MIB, "MiB"),
        Figure::new(
            "executable",
            bytes(&PathBuf::from(bench.microagent().get_program()))? / MIB,
            "MiB",
        ),
    ])
}

/// Resident memory of a supervisor whose guest runs.
pub(crate) fn supervisor_rss(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let running = Running::start(bench)?;
    let supervisor = parent_of(running.vmm)?;
    let status = fs::read_to_string(format!("/proc/{supervisor}/status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .with_context(|| format!("the supervisor has no {name}"))
    };
    Ok(vec![
        Figure::new("supervisor, resident", field("VmRSS:")? / KIB, "MiB").at_most(15.0),
        Figure::new(
            "supervisor, resident, not shared with files",
            field("RssAnon:")? / KIB,
            "MiB",
        ),
    ])
}

/// What a machine in which nothing happens costs: how often its supervisor wakes, and what its VMM
/// spends on emulating an idle processor.
pub(crate) fn idle(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let running = Running::start(bench)?;
    let supervisor = parent_of(running.vmm)?;
    // The guest agent does what can wait a second after it is ready.
    std::thread::sleep(IDLE_SETTLES);
    let (wakes, spent) = (waits_of(supervisor)?, processor_ticks(running.vmm)?);
    std::thread::sleep(IDLE_WINDOW);
    let wakes = waits_of(supervisor)?.saturating_sub(wakes);
    let spent = processor_ticks(running.vmm)?.saturating_sub(spent);
    let seconds = IDLE_WINDOW.as_secs_f64();
    // Linux counts them in hundredths of a second whatever its timer does.
    let percent = spent as f64 / seconds;
    Ok(vec![
        Figure::new(
            "supervisor, wake-ups a second when nothing happens",
            wakes as f64 / seconds,
            "/s",
        )
        .at_most(0.0),
        Figure::new("VMM of an idle guest, of one processor", percent, "%"),
    ])
}

/// How often the threads of a process have gone to sleep.
pub(crate) fn waits_of(pid: u32) -> anyhow::Result<u64> {
    let mut waits = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        waits += status
            .lines()
            .find_map(|line| {
                line.strip_prefix("voluntary_ctxt_switches:")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .context("a thread has no voluntary_ctxt_switches")?;
    }
    Ok(waits)
}

/// Processor time a process has spent, in hundredths of a second.
pub(crate) fn processor_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything but ends with the last parenthesis.
    let fields = stat.rsplit_once(") ").context("an odd stat file")?.1;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || -> anyhow::Result<u64> {
        let field = fields.next().context("a short stat file")?;
        Ok(field.parse()?)
    };
    Ok(next()? + next()?)
}

/// A whole warm `run` against the least that the same VMM, kernel and
/// initramfs need to reach user space and end.
pub(crate) fn run_against_bare_boot(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let arguments = bare_arguments(bench)?;
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for _ in bench.rounds() {
        let start = Instant::now();
        process::run_within(
            Command::new("qemu-system-x86_64").args(&arguments),
            BARE_BOOT_DEADLINE,
        )
        .context("the bare boot hangs or fails")?;
        bare.push(start.elapsed().as_secs_f64());
        ours.push(seconds(bench.microagent().args(["run", IMAGE, "true"]))?);
    }
    let (ours, bare) = (median(ours), median(bare));
    Ok(vec![
        Figure::new("bare QEMU boot to user space and end, median", bare, "s"),
        Figure::new("microagent run IMAGE true, warm, median", ours, "s"),
        Figure::new("run / bare boot", ours / bare, "×").at_most(1.30),
    ])
}

/// The tuned kernel against the distribution's: the same bare boot with one vCPU, in turn. And the
/// distribution's with the self-tests that its own command line runs.
pub(crate) fn kernel_against_distribution(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let changed = |arguments: &[String], option: &str, change: &dyn Fn(&str) -> String| {
        let mut arguments = arguments.to_vec();
        if let Some(at) = arguments.iter().position(|argument| argument == option)
            && let Some(value) = arguments.get_mut(at + 1)
        {
            *value = change(value);
        }
        arguments
    };
    let kernel = crate::kernel::built(None)?;
    let theirs = changed(&bare_arguments(bench)?, "-smp", &|_| "1".to_owned());
    let variants = [
        theirs.clone(),
        changed(&theirs, "-append", &|line| {
            line.replace("cryptomgr.notests ", "")
        }),
        changed(&theirs, "-kernel", &|_| kernel.display().to_string()),
    ];
    let mut times = [const { Vec::new() }; 3];
    for _ in bench.rounds() {
        for (arguments, times) in variants.iter().zip(&mut times) {
            let start = Instant::now();
            process::run_within(
                Command::new("qemu-system-x86_64").args(arguments),
                BARE_BOOT_DEADLINE,
            )
            .context("the bare boot hangs or fails")?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let [theirs, tested, ours] = times.map(median);
    let [arguments, _, ours_arguments] = &variants;
    let file_of = |arguments: &[String]| {
        let at = arguments.iter().position(|argument| argument == "-kernel");
        at.and_then(|at| arguments.get(at + 1)).map(PathBuf::from)
    };
    let their_kernel = file_of(arguments).context("the bare boot names no kernel")?;
    Ok(vec![
        Figure::new("the distribution's kernel, bare boot, median", theirs, "s"),
        Figure::new("the same with its self-tests", tested, "s"),
        Figure::new("the tuned kernel, bare boot, median", ours, "s"),
        Figure::new(
            "tuned / distribution's with its self-tests",
            ours / tested,
            "×",
        )
        .at_most(0.5),
        Figure::new("tuned / distribution's", ours / theirs, "×"),
        Figure::new(
            "the distribution's kernel",
            bytes(&their_kernel)? / MIB,
            "MiB",
        ),
        Figure::new(
            "the same, in the page cache after a boot",
            cached_by_a_boot(&their_kernel, arguments)? / MIB,
            "MiB",
        ),
        Figure::new("tuned kernel", bytes(&kernel)? / MIB, "MiB"),
        Figure::new(
            "tuned kernel, in the page cache after a boot",
            cached_by_a_boot(&kernel, ours_arguments)? / MIB,
            "MiB",
        ),
    ])
}

/// How much of a kernel's file a boot brings into the host's page cache, where all machines share it.
fn cached_by_a_boot(kernel: &Path, arguments: &[String]) -> anyhow::Result<f64> {
    let mut of = std::ffi::OsString::from("of=");
    of.push(kernel);
    // Copies nothing, and lets go of what is cached.
    process::output(Command::new("dd").arg(of).args([
        "oflag=nocache",
        "conv=notrunc,fdatasync",
        "count=0",
        "status=none",
    ]))?;
    process::run_within(
        Command::new("qemu-system-x86_64").args(arguments),
        BARE_BOOT_DEADLINE,
    )
    .context("the bare boot hangs or fails")?;
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--noheadings", "--output", "RES"]);
    let cached = process::output(fincore.arg(kernel))?.stdout;
    let cached = String::from_utf8(cached)?;
    cached
        .trim()
        .parse()
        .with_context(|| format!("fincore says {cached:?}"))
}

/// A hundred boots in a row while every core is busy with something else.
pub(crate) fn boots_under_load(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    const BOOTS: usize = 100;
    let cores = std::thread::available_parallelism()?.get();
    let mut load = Vec::new();
    for _ in 0..cores {
        load.push(Reaped(
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()?,
        ));
    }
    let mut times = Vec::new();
    let mut failures = 0;
    for boot in 0..BOOTS {
        let start = Instant::now();
        let output = bench
            .microagent()
            .args(["run", "--timeout", "120", IMAGE, "true"])
            .stdin(Stdio::null())
            .output()?;
        times.push(start.elapsed().as_secs_f64());
        if !output.status.success() {
            failures += 1;
            println!(
                "boot {boot}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let slowest = times.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Figure::new(
            format!("failed of {BOOTS} boots under full load"),
            f64::from(failures),
            "",
        )
        .at_most(0.0),
        Figure::new("run under full load, median", median(times), "s"),
        Figure::new("run under full load, slowest", slowest, "s"),
    ])
}

/// A run whose guest sleeps, and its VMM.
struct Running {
    _child: Reaped,
    vmm: u32,
    arguments: Vec<String>,
}

impl Running {
    fn start(bench: &Bench) -> anyhow::Result<Self> {
        let mut child = Reaped(
            bench
                .microagent()
                .args(["run", IMAGE, "sh", "-c", "echo ready; exec sleep 120"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start microagent")?,
        );
        let mut word = [0; 5];
        child
            .0
            .stdout
            .take()
            .context("no output")?
            .read_exact(&mut word)
            .context("the guest did not start")?;
        let state = bench.state().display().to_string();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok())
            else {
                continue;
            };
            // A process may end while we look at it.
            let Ok(cmdline) = fs::read(path.join("cmdline")) else {
                continue;
            };
            let arguments: Vec<_> = cmdline
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            if arguments[0].contains("qemu-system")
                && arguments.iter().any(|argument| argument.contains(&state))
            {
                return Ok(Self {
                    _child: child,
                    vmm: pid,
                    arguments,
                });
            }
        }
        bail!("no VMM of ours runs")
    }

    fn value_of(&self, option: &str) -> anyhow::Result<String> {
        let at = self
            .arguments
            .iter()
            .position(|argument| argument == option);
        at.and_then(|at| self.arguments.get(at + 1))
            .cloned()
            .with_context(|| format!("the VMM was started without {option}"))
    }
}

/// A child that does not outlive us.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The arguments of a VMM like ours with the same machine, CPU, kernel and
/// initramfs, but no devices, that ends when user space is reached.
pub(crate) fn bare_arguments(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let running = Running::start(bench)?;
    let init = bench.dir().join("bare-init");
    let source = bench.dir().join("bare-init.c");
    fs::write(
        &source,
        "#include <sys/reboot.h>\nint main(void) { return reboot(RB_AUTOBOOT); }\n",
    )?;
    process::output(
        Command::new("cc")
            .args(["-static", "-Os", "-o"])
            .arg(&init)
            .arg(&source),
    )?;
    // The kernel takes several archives one after the other as one initramfs.
    let mut initramfs = fs::read(running.value_of("-initrd")?)?;
    initramfs.resize(initramfs.len().next_multiple_of(512), 0);
    append_cpio(&mut initramfs, "bare-init", 0o100_755, &fs::read(&init)?)?;
    append_cpio(&mut initramfs, "TRAILER!!!", 0, &[])?;
    let path = bench.dir().join("bare-initramfs");
    fs::write(&path, initramfs)?;

    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "null",
    ]
    .map(str::to_owned)
    .into();
    for option in ["-accel", "-cpu", "-smp", "-kernel"] {
        arguments.extend([option.to_owned(), running.value_of(option)?]);
    }
    let machine = running
        .value_of("-machine")
        .or_else(|_| running.value_of("-M"))?;
    let machine: Vec<_> = machine
        .split(',')
        .filter(|part| !part.starts_with("memory-backend="))
        .collect();
    arguments.extend(["-machine".to_owned(), machine.join(",")]);
    arguments.extend(["-m".to_owned(), running.value_of("-m")?]);
    arguments.extend(["-initrd".to_owned(), path.display().to_string()]);
    arguments.extend([
        "-append".to_owned(),
        format!("{} rdinit=/bare-init", running.value_of("-append")?),
    ]);
    println!("$ qemu-system-x86_64 {}", arguments.join(" "));
    Ok(arguments)
}

/// Appends one entry in the `newc` form of cpio.
fn append_cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) -> anyhow::Result<()> {
    write!(archive, "070701")?;
    for field in [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(data.len())?,
        0,
        0,
        0,
        0,
        u32::try_from(name.len())? + 1,
        0,
    ] {
        write!(archive, "{field:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

fn parent_of(pid: u32) -> anyhow::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .with_context(|| format!("process {pid} has no parent"))
}

fn bytes(path: &Path) -> anyhow::Result<f64> {
    let length = fs::metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .len();
    Ok(length as f64)
}

fn find_file(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else if entry.file_name() == name {
                return Ok(entry.path());
            }
        }
    }
    bail!("there is no {name} below {}", dir.display())
}
