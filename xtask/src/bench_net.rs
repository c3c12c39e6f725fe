//! What a published port costs, against the forwarding that QEMU has itself.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    bench::{Bench, Figure, median},
    process,
};

const IMAGE: &str = "bench-server";
const GUEST_PORT: u16 = 5001;
const MIB: usize = 1 << 20;
/// Bytes of one transfer.
const BULK: usize = 32 * MIB;
/// Round trips of one measurement.
const TRIPS: usize = 300;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What servers in a guest begin with: the first byte of a connection says what is to be done with it: echo each
/// message, take all and answer, or send.
pub(crate) const SERVE: &str = r#"
#include <unistd.h>
static char buffer[65536];
static int put(int fd, const char *from, long count) {
    while (count > 0) {
        long n = write(fd, from, count);
        if (n <= 0) return -1;
        from += n, count -= n;
    }
    return 0;
}
static void serve(int fd) {
    char what;
    long n, left = BULK;
    if (read(fd, &what, 1) != 1) return;
    if (what == 'E') while ((n = read(fd, buffer, sizeof buffer)) > 0 && !put(fd, buffer, n));
    if (what == 'T') { while (read(fd, buffer, sizeof buffer) > 0); put(fd, "k", 1); }
    if (what == 'G') for (; left > 0 && !put(fd, buffer, sizeof buffer); left -= sizeof buffer);
}
"#;

/// The server in the guest.
const SERVER: &str = r#"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(void) {
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(PORT) };
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGCHLD, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 128)) return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fork() == 0) { close(listener); serve(fd); return 0; }
        close(fd);
    }
}
"#;

/// A published port against QEMU's `hostfwd`: the same kernel, guest and server, measured in turn.
pub(crate) fn published(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    make_image(bench)?;
    let ours = Machine::published(bench)?;
    let theirs = Machine::forwarded(bench)?;
    let mut figures = Vec::new();
    for (what, unit, measure) in MEASURES {
        let (mut published, mut forwarded) = (Vec::new(), Vec::new());
        for _ in bench.rounds() {
            published.push(measure(ours.address)?);
            forwarded.push(measure(theirs.address)?);
        }
        let (published, forwarded) = (median(published), median(forwarded));
        figures.extend([
            Figure::new(format!("published port, {what}"), published, unit),
            Figure::new(format!("QEMU hostfwd, {what}"), forwarded, unit),
            // Less is better in every ratio.
            match unit {
                "MiB/s" => Figure::new(
                    format!("hostfwd / published, {what}"),
                    forwarded / published,
                    "×",
                ),
                _ => Figure::new(
                    format!("published / hostfwd, {what}"),
                    published / forwarded,
                    "×",
                ),
            },
        ]);
    }
    Ok(figures)
}

type Measure = fn(SocketAddr) -> anyhow::Result<f64>;

const MEASURES: [(&str, &str, Measure); 4] = [
    ("64-byte round trip", "ms", latency),
    ("connect, one byte, close", "ms", connects),
    ("into the guest", "MiB/s", into_guest),
    ("out of the guest", "MiB/s", out_of_guest),
];

fn connect(address: SocketAddr, what: u8) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&[what])?;
    Ok(stream)
}

fn latency(address: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = connect(address, b'E')?;
    let mut message = [7; 64];
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

fn connects(address: SocketAddr) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..TRIPS / 10 {
        let begun = Instant::now();
        let mut stream = connect(address, b'E')?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        drop(stream);
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

fn into_guest(address: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = connect(address, b'T')?;
    let chunk = vec![7; 64 * 1024];
    let begun = Instant::now();
    for _ in 0..BULK / chunk.len() {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok((BULK / MIB) as f64 / begun.elapsed().as_secs_f64())
}

fn out_of_guest(address: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = connect(address, b'G')?;
    let begun = Instant::now();
    let mut left = BULK;
    let mut chunk = vec![0; 64 * 1024];
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => bail!("the guest ended early"),
            count => left = left.saturating_sub(count),
        }
    }
    Ok((BULK / MIB) as f64 / begun.elapsed().as_secs_f64())
}

/// A guest whose server can be reached at `address`.
struct Machine {
    address: SocketAddr,
    _child: Ended,
}

impl Machine {
    /// By a published port.
    fn published(bench: &Bench) -> anyhow::Result<Self> {
        let port = free_port()?;
        let publish = format!("{port}:{GUEST_PORT}");
        Self::start(bench.microagent(), port, &["-p", &publish])
    }

    /// By a QEMU that is told to forward: called by a script that adds that to what it is told.
    fn forwarded(bench: &Bench) -> anyhow::Result<Self> {
        const QEMU: &str = "qemu-system-x86_64";
        let port = free_port()?;
        let real = process::find(QEMU).with_context(|| format!("{QEMU} is missing"))?;
        let bin = bench.dir().join("hostfwd/bin");
        fs::create_dir_all(&bin)?;
        let script = format!(
            "#!/bin/sh\nfor word; do\n  shift\n  case $word in user,id=net,*) \
             word=$word,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{GUEST_PORT};; esac\n  \
             set -- \"$@\" \"$word\"\ndone\nexec {} \"$@\"\n",
            real.display()
        );
        write_program(&bin.join(QEMU), &script)?;
        let mut command = bench.microagent();
        // Nothing else is found there, passt least of all: what forwards is QEMU's own network.
        command.env("PATH", bin);
        Self::start(command, port, &[])
    }

    fn start(mut command: Command, port: u16, options: &[&str]) -> anyhow::Result<Self> {
        let mut child = Ended(
            command
                .arg("run")
                .args(options)
                .args([IMAGE, "/server"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start microagent")?,
        );
        let mut word = [0; 5];
        let output = child.0.stdout.as_mut().context("no output")?;
        output.read_exact(&mut word).context("no server came up")?;
        let machine = Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            _child: child,
        };
        // The first connection finds a guest that has never done this.
        latency(machine.address)?;
        Ok(machine)
    }
}

/// A child that does not outlive us, and is asked before it is killed.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// An image of the server and nothing else.
fn make_image(bench: &Bench) -> anyhow::Result<()> {
    let root = bench.dir().join("server");
    fs::create_dir_all(&root)?;
    let source: PathBuf = bench.dir().join("server.c");
    fs::write(&source, [SERVE, SERVER].concat())?;
    process::output(
        Command::new("cc")
            .args(["-static", "-O2", "-o"])
            .arg(root.join("server"))
            .arg(format!("-DPORT={GUEST_PORT}"))
            .arg(format!("-DBULK={BULK}"))
            .arg(&source),
    )?;
    let archive = bench.dir().join("server.tar");
    process::output(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("server"),
    )?;
    process::output(
        bench
            .microagent()
            .args(["images", "import", "--name", IMAGE])
            .arg(&archive),
    )?;
    Ok(())
}
