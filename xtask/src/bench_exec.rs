//! What a command in a running workspace costs, and a copy in and out, against the least that the
//! same guest needs for it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bench::{Bench, Figure, median, seconds},
    bench_net::SERVE,
    bench_run, process,
};

/// Commands of one measurement, after some that are not counted.
const EXECS: usize = 60;
const WARM_UP: usize = 15;
const MIB: usize = 1 << 20;
/// Bytes of one copy.
const BULK: usize = 256 * MIB;
/// Where the floor program listens in the guest.
const PORT: u32 = 5002;
/// How long a stream may stand still.
const LIMIT: Duration = Duration::from_secs(120);
const NAME: &str = "bench-exec";

/// The floor program: starts a program again and again, or serves raw vsock streams.
const FLOOR: &str = r#"
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e3 + at.tv_nsec / 1e6;
}
static int start(int count, char **argv) {
    while (count--) {
        double begun = now();
        int status;
        pid_t pid = vfork();
        if (pid == 0) { execv(argv[0], argv); _exit(127); }
        if (waitpid(pid, &status, 0) != pid || status) return 1;
        printf("%.4f\n", now() - begun);
    }
    return 0;
}
int main(int argc, char **argv) {
    if (argc > 2) return start(atoi(argv[1]), argv + 2);
    struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT };
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    signal(SIGCHLD, SIG_IGN);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 16)) return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        if (fd < 0) continue;
        if (fork() == 0) { close(listener); serve(fd); return 0; }
        close(fd);
    }
}
"#;

/// The least program there is: it ends at once, without a C library that would prepare itself before.
const TRUE: &str = r#"
#if defined(__x86_64__)
__asm__(".globl _start\n_start: mov $60, %eax\n xor %edi, %edi\n syscall");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x8, #93\n mov x0, #0\n svc #0");
#endif
"#;

/// `exec` of a program that does nothing, by the command line and by the library, against the same
/// program started by a process in the guest.
pub(crate) fn exec(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let workspace = Workspace::start(bench)?;
    let library = example()?;
    let mut figures = vec![Figure::new(
        "64-byte round trip of a raw vsock stream, median",
        workspace.round_trip()?,
        "ms",
    )];
    // The promise is about what is ours, so it is held with the least program. The C library of
    // busybox takes as long as the kernel to start it, and the loader of the image's own takes most of
    // its time.
    for (what, argv, limits) in [
        ("bare true", &["/true"][..], Some((15.0, 4.0))),
        ("busybox true", &["/busybox", "true"][..], Some((15.0, 4.0))),
        ("Debian's true", &["/usr/bin/true"][..], None),
    ] {
        let floor = workspace.floor(argv)?;
        let called = times(
            Command::new(&library)
                .arg(bench.state())
                .arg(NAME)
                .arg((EXECS + WARM_UP).to_string())
                .args(argv),
        )?;
        let mut commanded = Vec::new();
        for _ in 0..EXECS {
            let mut command = bench.microagent();
            command.args(["exec", NAME, "--"]).args(argv);
            commanded.push(seconds(&mut command)? * 1000.0);
        }
        let commanded = median(commanded);
        let figure =
            |name: &str, value| Figure::new(format!("{what}, {name}, median"), value, "ms");
        let (by_command, by_library) = (figure("exec", commanded), figure("library", called));
        figures.push(figure("started by a process in the guest", floor));
        match limits {
            Some((command, library)) => {
                figures.extend([by_command.at_most(command), by_library.at_most(library)]);
            }
            None => figures.extend([by_command, by_library]),
        }
        figures.push(figure("library less what the guest needs", called - floor));
        let ratio = format!("{what}, library / started by a process in the guest");
        figures.push(Figure::new(ratio, called / floor, "×"));
    }
    Ok(figures)
}

/// `cp` of a large file, in and out, against the streams and files beneath it.
pub(crate) fn copy(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut workspace = Workspace::start(bench)?;
    let file = bench.dir().join("bulk");
    fs::write(&file, noise(BULK))?;
    let back = bench.dir().join("bulk-back");
    let guest = format!("{NAME}:/root/bulk");
    let rate = |seconds: f64| (BULK / MIB) as f64 / seconds;
    let figure = |name: &str, seconds: f64| Figure::new(name, rate(seconds), "MiB/s");

    let into = workspace.raw(b'T')?;
    let out = workspace.raw(b'G')?;
    let mut cat = bench.microagent();
    cat.args(["exec", "-i", NAME, "--", "sh", "-c", "cat > /root/cat"]);
    let begun = Instant::now();
    let status = cat.stdin(fs::File::open(&file)?).status()?;
    let cat = begun.elapsed().as_secs_f64();
    anyhow::ensure!(status.success(), "cat in the guest: {status}");
    process::output(bench.microagent().args(["exec", NAME, "rm", "/root/cat"]))?;
    let copied_in = seconds(bench.microagent().arg("cp").arg(&file).arg(&guest))?;
    let copied_out = seconds(bench.microagent().arg("cp").arg(&guest).arg(&back))?;
    same(&file, &back)?;
    workspace.server = None;
    process::output(bench.microagent().args(["halt", NAME]))?;

    fs::remove_file(&back)?;
    let halted_out = seconds(bench.microagent().arg("cp").arg(&guest).arg(&back))?;
    same(&file, &back)?;
    let halted_in = seconds(
        bench
            .microagent()
            .arg("cp")
            .arg(&file)
            .arg(format!("{NAME}:/root/again")),
    )?;
    fs::remove_file(&back)?;
    let begun = Instant::now();
    fs::copy(&file, &back)?;
    fs::File::open(&back)?.sync_all()?;
    let plain = begun.elapsed().as_secs_f64();
    Ok(vec![
        figure("raw vsock stream into the guest", into),
        figure("raw vsock stream out of the guest", out),
        figure("exec -i cat > file", cat),
        figure("cp into a running workspace", copied_in),
        figure("cp out of a running workspace", copied_out),
        figure("a plain copy on the host, with fsync", plain),
        figure("cp into a halted workspace", halted_in),
        figure("cp out of a halted workspace", halted_out),
    ])
}

/// A running workspace with the floor program in it; gone when dropped.
struct Workspace<'a> {
    bench: &'a Bench,
    server: Option<Server>,
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        self.server = None;
        // What is left is removed by the next one.
        let _left = Self::remove(self.bench);
    }
}

/// A command that serves until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl<'a> Workspace<'a> {
    fn start(bench: &'a Bench) -> anyhow::Result<Self> {
        let source = bench.dir().join("floor.c");
        let floor = bench.dir().join("floor");
        fs::write(&source, [SERVE, FLOOR].concat())?;
        process::output(
            Command::new("cc")
                .args(["-static", "-O2", "-o"])
                .arg(&floor)
                .arg(format!("-DBULK={BULK}l"))
                .arg(format!("-DPORT={PORT}"))
                .arg(&source),
        )?;
        let (least, least_source) = (bench.dir().join("true"), bench.dir().join("true.c"));
        fs::write(&least_source, TRUE)?;
        process::output(
            Command::new("cc")
                .args(["-static", "-nostdlib", "-o"])
                .arg(&least)
                .arg(&least_source),
        )?;
        // There is one only after a run that failed.
        let _missing = Self::remove(bench);
        process::output(bench.microagent().args(["create", NAME, bench_run::IMAGE]))?;
        process::output(bench.microagent().args(["start", NAME]))?;
        for (program, place) in [
            (floor.as_path(), "floor"),
            (least.as_path(), "true"),
            (Path::new("/bin/busybox"), "busybox"),
        ] {
            let target = format!("{NAME}:/{place}");
            process::output(bench.microagent().arg("cp").arg(program).arg(target))?;
        }
        let mut server = Server(
            bench
                .microagent()
                .args(["exec", NAME, "/floor"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let output = server.0.stdout.as_mut().context("no output")?;
        output
            .read_exact(&mut [0; 5])
            .context("the server in the guest did not come up")?;
        Ok(Self {
            bench,
            server: Some(server),
        })
    }

    fn remove(bench: &Bench) -> anyhow::Result<std::process::Output> {
        process::output(bench.microagent().args(["delete", "--force", NAME]))
    }

    /// How long the guest itself takes to start a program and to see its end.
    fn floor(&self, argv: &[&str]) -> anyhow::Result<f64> {
        let mut command = self.bench.microagent();
        command.args(["exec", NAME, "--", "/floor"]);
        times(command.arg((EXECS + WARM_UP).to_string()).args(argv))
    }

    /// A stream to the floor program that is to do `what`, past everything but the vsock device.
    fn connect(&self, what: u8) -> anyhow::Result<UnixStream> {
        let record = self.bench.state().join("workspaces").join(NAME);
        let record = fs::read_to_string(record.join("machine.json"))?;
        let record: serde_json::Value = serde_json::from_str(&record)?;
        let sockets = record["runtime_dir"].as_str().context("no runtime_dir")?;
        let mut stream = UnixStream::connect(Path::new(sockets).join("vsock.sock"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        stream.write_all(&[what])?;
        Ok(stream)
    }

    fn round_trip(&self) -> anyhow::Result<f64> {
        let mut stream = self.connect(b'E')?;
        let mut message = [7; 64];
        let mut taken = Vec::new();
        for _ in 0..EXECS {
            let begun = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            taken.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(median(taken))
    }

    /// How long a copy's bytes take without anything that makes a copy of them.
    fn raw(&self, what: u8) -> anyhow::Result<f64> {
        let mut stream = self.connect(what)?;
        let mut chunk = vec![7; 64 * 1024];
        let begun = Instant::now();
        if what == b'T' {
            for _ in 0..BULK / chunk.len() {
                stream.write_all(&chunk)?;
            }
            stream.shutdown(Shutdown::Write)?;
            stream.read_exact(&mut [0])?;
            return Ok(begun.elapsed().as_secs_f64());
        }
        let mut left = BULK;
        while left > 0 {
            match stream.read(&mut chunk)? {
                0 => bail!("the guest ended early"),
                count => left = left.saturating_sub(count),
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// The middle of the times that `command` prints, a line each, but for the first ones.
fn times(command: &mut Command) -> anyhow::Result<f64> {
    let output = command.stdin(Stdio::null()).output()?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut taken = Vec::new();
    for line in BufReader::new(&output.stdout[..]).lines().skip(WARM_UP) {
        taken.push(line?.parse()?);
    }
    anyhow::ensure!(taken.len() == EXECS, "{command:?} printed too little");
    Ok(median(taken))
}

/// The program of the library's users.
fn example() -> anyhow::Result<PathBuf> {
    let arguments = ["build", "--release", "--locked", "--package", "microagent"];
    process::run(
        process::cargo()
            .args(arguments)
            .args(["--example", "exec_times"]),
    )?;
    Ok(process::target_dir().join("release/examples/exec_times"))
}

/// Bytes that nothing on their way can leave out.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(fs::read(one)? == fs::read(other)?, "the copy differs");
    Ok(())
}
