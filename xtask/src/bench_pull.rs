//! What it costs to get an image from a registry to a disk: the first, and one that shares layers with it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    bench::{Bench, Figure, median, seconds},
    bench_image::{clear, inflate_program, oci_layout},
    process,
};

pub(crate) const MIB: f64 = 1024.0 * 1024.0;
/// Layers of the large image, each as large as a Debian.
const LAYERS: u8 = 5;

/// A cold pull of 1 GB in 5 layers, then of an image that shares 4 of them. What stands without a promise
/// is aimed at in `docs/design/disks.md`.
pub(crate) fn pull(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = layout(bench)?;
    let registry = Registry::start(&bench.dir().join("registry"))?;
    for tag in ["first", "second"] {
        registry.push(&layout, tag)?;
    }
    let inflate = inflate_program()?;
    let state = bench.dir().join("pull-state");
    let mut columns: [Vec<f64>; 6] = Default::default();
    let (mut grown, mut peak) = ([0; 4], 0);
    let mut content = 0;
    for _ in bench.rounds() {
        clear(&state)?;
        let images = state.join("images");
        let first = registry.pull(bench, &state, "first")?;
        let disks = |folder: &str| allocated(&images.join(folder));
        let before = [disks("disks")?, disks("blobs")?];
        let second = registry.pull(bench, &state, "second")?;
        grown = [
            before[0],
            before[1],
            disks("disks")? - before[0],
            disks("blobs")? - before[1],
        ];
        peak = peak.max(first.peak);
        clear(&state)?;
        let (floor, bytes) = registry.only_inflate("first", &inflate)?;
        content = bytes;
        let times = [
            first.seconds,
            second.seconds,
            floor,
            registry.curl_and("gzip", "first")?,
            registry.curl_and("pigz", "first")?,
            registry.with_other_tools(bench, "first")?,
        ];
        for (column, value) in columns.iter_mut().zip(times) {
            column.push(value);
        }
    }
    let [first, second, floor, gzip, pigz, theirs] = columns.map(median);
    let mib = |bytes: u64| bytes as f64 / MIB;
    let [disk, blobs, more_disk, more_blobs] = grown.map(mib);
    Ok(vec![
        Figure::new(
            "skopeo copy + umoci unpack + mke2fs -d, median",
            theirs,
            "s",
        ),
        Figure::new("only curl and gzip -dc, median", gzip, "s"),
        Figure::new("only curl and pigz -dc, median", pigz, "s"),
        Figure::new(
            "only download and inflate as a pull does, median",
            floor,
            "s",
        ),
        Figure::new("images pull of 1 GB, 5 layers, cold, median", first, "s"),
        Figure::new("pull / other tools", first / theirs, "×").at_most(1.0 / 6.0),
        Figure::new("pull / only curl and gzip -dc", first / gzip, "×").at_most(1.5),
        Figure::new("pull / only curl and pigz -dc", first / pigz, "×").at_most(1.5),
        Figure::new(
            "pull / only download and inflate as a pull does",
            first / floor,
            "×",
        ),
        Figure::new("peak memory of that pull", mib(peak), "MiB").at_most(150.0),
        Figure::new("second image, 4 of 5 layers shared, median", second, "s"),
        Figure::new("second / first, time", second / first, "×").at_most(0.25),
        Figure::new("second / first, disk", more_disk / disk, "×").at_most(0.25),
        Figure::new("disk / uncompressed layers", disk / mib(content), "×").at_most(1.05),
        Figure::new("first image: disk", disk, "MiB"),
        Figure::new("first image: layers as pulled", blobs, "MiB"),
        Figure::new("second image: disk", more_disk, "MiB"),
        Figure::new("second image: layers as pulled", more_blobs, "MiB"),
    ])
}

pub(crate) struct Pulled {
    pub(crate) seconds: f64,
    /// The most memory it had, in bytes.
    pub(crate) peak: u64,
    /// Seconds of processors.
    pub(crate) processors: f64,
}

/// Debian's `docker-registry` on a loopback port of its choice.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let config = serde_json::json!({
            "version": 0.1,
            "log": {"level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": directory.join("storage")}},
            "http": {"addr": "127.0.0.1:0", "secret": "bench"},
        });
        let path = directory.join("config.yml");
        // JSON is YAML.
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start docker-registry")?;
        let mut registry = Self { child, port: 0 };
        let log = registry.child.stderr.take().context("no standard error")?;
        let (found, port) = mpsc::channel();
        // Read to its end, so that the registry never waits for somebody to read it.
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some(rest) = line.split("listening on 127.0.0.1:").nth(1) {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    // Only the first is waited for.
                    let _ = found.send(digits);
                }
            }
        });
        registry.port = port
            .recv_timeout(Duration::from_secs(30))
            .context("docker-registry did not say its port")?
            .parse()?;
        Ok(registry)
    }

    pub(crate) fn push(&self, layout: &Path, tag: &str) -> anyhow::Result<()> {
        process::output(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--preserve-digests"])
                .arg("--dest-tls-verify=false")
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{}", self.reference(tag))),
        )?;
        Ok(())
    }

    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("127.0.0.1:{}/bench:{tag}", self.port)
    }

    pub(crate) fn pull(&self, bench: &Bench, state: &Path, tag: &str) -> anyhow::Result<Pulled> {
        let start = Instant::now();
        let mut child = bench
            .microagent_on(state)
            .args(["images", "pull", &self.reference(tag)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let of = |what: &str| format!("/proc/{}/{what}", child.id());
        let (status, stat) = (of("status"), of("stat"));
        let (mut peak, mut processors) = (0, 0.0f64);
        let ended = loop {
            // The high-water mark only rises: what is missed is what it rose by in the last moment.
            if let Ok(text) = fs::read_to_string(&status) {
                peak = peak.max(high_water(&text));
            }
            // It only rises, too, and is there until the end is asked for.
            if let Ok(text) = fs::read_to_string(&stat) {
                processors = processors.max(processor_seconds(&text));
            }
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let seconds = start.elapsed().as_secs_f64();
        if !ended.success() {
            let mut said = String::new();
            if let Some(mut pipe) = child.stderr.take() {
                pipe.read_to_string(&mut said)?;
            }
            bail!("the pull of {tag} failed: {ended}\n{said}");
        }
        Ok(Pulled {
            seconds,
            peak,
            processors,
        })
    }

    /// Downloads the layers side by side and decompresses each as it comes, all with tools of the field, and
    /// keeps nothing; how long that took.
    fn curl_and(&self, decompress: &str, tag: &str) -> anyhow::Result<f64> {
        let layers = self.layers(tag)?;
        let start = Instant::now();
        let mut running = Vec::new();
        for layer in &layers {
            let mut curl = Command::new("curl")
                .args(["--silent", "--show-error", "--fail"])
                .arg(format!("http://{}{layer}", self.authority()))
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start curl")?;
            let body = curl.stdout.take().context("no standard output")?;
            let decompress = Command::new(decompress)
                .arg("-dc")
                .stdin(body)
                .stdout(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {decompress}"))?;
            running.extend([curl, decompress]);
        }
        for mut child in running {
            let ended = child.wait()?;
            if !ended.success() {
                bail!("a layer of {tag} was not downloaded and decompressed: {ended}");
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Downloads the layers side by side and inflates each as it comes, with the decompressor of a pull;
    /// how long that took, and how many bytes came out.
    fn only_inflate(&self, tag: &str, inflate: &Path) -> anyhow::Result<(f64, u64)> {
        let start = Instant::now();
        let running = self
            .layers(tag)?
            .iter()
            .map(|layer| {
                let body = OwnedFd::from(self.get(layer)?);
                let child = Command::new(inflate)
                    .arg("-")
                    .stdin(body)
                    .stdout(Stdio::piped())
                    .spawn()?;
                Ok(child)
            })
            .collect::<anyhow::Result<Vec<Child>>>()?;
        let mut bytes = 0;
        for child in running {
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("a layer of {tag} did not inflate: {}", output.status);
            }
            bytes += String::from_utf8(output.stdout)?.trim().parse::<u64>()?;
        }
        Ok((start.elapsed().as_secs_f64(), bytes))
    }

    /// Where the layers of an image are.
    pub(crate) fn layers(&self, tag: &str) -> anyhow::Result<Vec<String>> {
        let mut manifest = String::new();
        self.get(&format!("/v2/bench/manifests/{tag}"))?
            .read_to_string(&mut manifest)?;
        let manifest: Value = serde_json::from_str(&manifest)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        layers
            .iter()
            .map(|layer| {
                let digest = layer["digest"].as_str().context("no digest")?;
                Ok(format!("/v2/bench/blobs/{digest}"))
            })
            .collect()
    }

    /// Its host and port.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection that has nothing to say any more but the body.
    fn get(&self, path: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
        )?;
        // Byte by byte, as the rest of the stream is for somebody else.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head)?;
        if !head
            .lines()
            .next()
            .is_some_and(|line| line.contains(" 200 "))
        {
            bail!("the registry has no {path}: {head}");
        }
        Ok(stream)
    }

    pub(crate) fn with_other_tools(&self, bench: &Bench, tag: &str) -> anyhow::Result<f64> {
        let copy = bench.dir().join("pull-copy");
        let bundle = bench.dir().join("bundle");
        let disk = bench.dir().join("mke2fs.ext4");
        for path in [&copy, &bundle, &disk] {
            clear(path)?;
        }
        let image = format!("{}:{tag}", copy.display());
        let time = seconds(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
                .arg(format!("docker://{}", self.reference(tag)))
                .arg(format!("oci:{image}")),
        )? + seconds(
            Command::new("umoci")
                .args(["unpack", "--image", &image])
                .arg(&bundle),
        )? + seconds(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-N", "400000", "-d"])
                .arg(bundle.join("rootfs"))
                .arg(&disk)
                .arg("4G"),
        )?;
        for path in [&copy, &bundle, &disk] {
            clear(path)?;
        }
        Ok(time)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `VmHWM` of a `/proc/PID/status`, in bytes.
fn high_water(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// The processor time of a `/proc/PID/stat`, in seconds: its 14th and 15th field, in hundredths.
fn processor_seconds(stat: &str) -> f64 {
    // The second field is a name in parentheses, and may have any characters.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = rest.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Bytes that the files below a directory have on the host's disk.
pub(crate) fn allocated(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            allocated(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}

/// An OCI layout with the images `first` and `second`, of 5 layers of which they share 4.
pub(crate) fn layout(bench: &Bench) -> anyhow::Result<PathBuf> {
    let layout = bench.dir().join("pull-layout");
    let done = layout.join("complete");
    if done.exists() {
        return Ok(layout);
    }
    clear(&layout)?;
    let debian = oci_layout(bench)?;
    let of = |tag: &str| format!("{}:{tag}", layout.display());
    process::output(
        Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci:{}:12", debian.display()))
            .arg(format!("oci:{}", of("base"))),
    )?;
    let bundle = bench.dir().join("layout-bundle");
    clear(&bundle)?;
    process::output(
        Command::new("umoci")
            .args(["unpack", "--image", &of("base")])
            .arg(&bundle),
    )?;
    let tree = bench.dir().join("layout-tree");
    let insert = |from: &str, to: &str, target: &str| {
        process::output(
            Command::new("umoci")
                .args(["insert", "--image", &of(from), "--tag", to])
                .arg(&tree)
                .arg(target),
        )
    };
    // Other content of the same kind, and as compressible: every byte moved by the layer's number.
    for layer in 1..LAYERS {
        clear(&tree)?;
        shifted(&bundle.join("rootfs"), &tree, layer)?;
        let (from, to) = match layer {
            1 => ("base", "shared"),
            _ if layer < LAYERS - 1 => ("shared", "shared"),
            _ => ("shared", "first"),
        };
        insert(from, to, &format!("/opt/{layer}"))?;
    }
    clear(&tree)?;
    shifted(&bundle.join("rootfs"), &tree, LAYERS)?;
    insert("shared", "second", "/opt/second")?;
    clear(&tree)?;
    clear(&bundle)?;
    fs::write(&done, "")?;
    Ok(layout)
}

/// Copies directories and regular files, with each byte of content raised by `by`.
fn shifted(from: &Path, to: &Path, by: u8) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            shifted(&entry.path(), &target, by)?;
        } else if kind.is_file() {
            let mut content = fs::read(entry.path())?;
            for byte in &mut content {
                *byte = byte.wrapping_add(by);
            }
            fs::write(target, content)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{high_water, processor_seconds};

    #[test]
    fn processor_time_is_of_user_and_kernel() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 9 9 20 0 1 0 99";
        assert!((processor_seconds(stat) - 3.0).abs() < 1e-9);
        assert!(processor_seconds("").abs() < f64::EPSILON);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      12 kB\n";
        assert_eq!(high_water(status), 2 << 20);
        assert_eq!(high_water("Name:\tzombie\n"), 0);
    }
}
