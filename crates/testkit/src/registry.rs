//! A real registry on loopback, images small enough to read, and a wire that can be slow or cut.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a tool to its end and returns its standard output; a failure shows its standard error.
///
/// # Errors
/// When the tool is missing (names the Debian `package` that has it) or fails.
pub fn run_tool(package: &str, command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| missing(command, package))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

fn missing(command: &Command, package: &str) -> String {
    format!(
        "cannot run `{}`: install the Debian package `{package}`",
        command.get_program().to_string_lossy()
    )
}

/// How a [`Registry`] is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The one user and password it accepts; everybody without.
    pub login: Option<(String, String)>,
    /// Certificate and key (PEM files) to speak TLS with; plain HTTP without.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// Debian's `docker-registry` on a free loopback port, storing into a directory of its own; killed when
/// dropped.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    port: u16,
    setup: Setup,
    directory: TempDir,
}

impl Registry {
    /// Starts one that speaks plain HTTP to everybody.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(Setup::default())
    }

    /// Starts one as `setup` says.
    ///
    /// # Errors
    /// When `docker-registry` (or, for a login, `htpasswd`) is missing or the registry does not come up.
    pub fn start_with(setup: Setup) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        if let Some((user, password)) = &setup.login {
            let line = run_tool(
                "apache2-utils",
                Command::new("htpasswd").args(["-nbB", user, password]),
            )?;
            fs::write(directory.path().join("htpasswd"), line)?;
        }
        let mut registry = Self {
            child: None,
            port: 0,
            setup,
            directory,
        };
        registry.restart()?;
        Ok(registry)
    }

    /// Starts it again, on the same port and with the same content, after [`kill`](Self::kill).
    ///
    /// # Errors
    /// When it does not come up within 30 s.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let root = self.directory.path();
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": root.join("storage")}, "delete": {"enabled": true}},
            "http": {"addr": format!("127.0.0.1:{}", self.port), "secret": "test"},
        });
        if self.setup.login.is_some() {
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": root.join("htpasswd")}});
        }
        if let Some((certificate, key)) = &self.setup.tls {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        // JSON is YAML.
        let path = root.join("config.yml");
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| missing(&command, "docker-registry"))?;
        let log = child.stderr.take().context("no standard error")?;
        self.child = Some(child);
        // It chooses the port and logs it; the log is read to its end so that it never blocks.
        let (found, port) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut seen = String::new();
            for line in BufReader::new(log).lines().map_while(io::Result::ok) {
                seen.push_str(&line);
                seen.push('\n');
                if let Some(rest) = line.split("listening on 127.0.0.1:").nth(1) {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    // The receiver is gone once it has its answer.
                    let _ = found.send(Ok(digits));
                }
            }
            let _ = found.send(Err(seen));
        });
        match port.recv_timeout(DEADLINE) {
            Ok(Ok(port)) => self.port = port.parse()?,
            Ok(Err(log)) => bail!("docker-registry ended: {log}"),
            Err(_) => bail!("docker-registry did not say its port within {DEADLINE:?}"),
        }
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not answer on port {}", self.port);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills it with SIGKILL; what it stored stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The process id, to kill it from a place that has no `&mut`.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The full reference of `name` (`debian:12`) in this registry.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// The file that holds a blob, to damage it. `digest` is `sha256:<hex>`.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.directory
            .path()
            .join("storage/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// Pushes the image `name` of an OCI layout as `name`, with all its platforms and unchanged digests.
    ///
    /// # Errors
    /// When `skopeo` is missing or fails.
    pub fn push(&self, layout: &Path, name: &str) -> Result<()> {
        let mut command = skopeo();
        command.args([
            "copy",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        if let Some((user, password)) = &self.setup.login {
            command.arg(format!("--dest-creds={user}:{password}"));
        }
        command
            .arg(format!("oci:{}:{name}", layout.display()))
            .arg(format!("docker://{}", self.reference(name)));
        run_tool("skopeo", &mut command)?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `skopeo`, accepting unsigned images.
#[must_use]
pub fn skopeo() -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy");
    command
}

/// Certificates for 127.0.0.1, signed by an authority nobody knows.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate (PEM file).
    pub authority: PathBuf,
    /// The server's certificate (PEM file).
    pub certificate: PathBuf,
    /// The server's key (PEM file).
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `directory`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn make(directory: &Path) -> Result<Self> {
        let file = |name: &str| directory.join(name);
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.current_dir(directory).args(arguments);
            run_tool("openssl", &mut command)
        };
        fs::write(
            file("leaf.ext"),
            "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )?;
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        openssl(
            &[
                &[
                    "req",
                    "-x509",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=authority",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                ],
                &key[..],
            ]
            .concat(),
        )?;
        openssl(
            &[
                &[
                    "req", "-subj", "/CN=leaf", "-keyout", "leaf.key", "-out", "leaf.csr",
                ],
                &key[..],
            ]
            .concat(),
        )?;
        openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            "leaf.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "leaf.ext",
            "-out",
            "leaf.pem",
        ])?;
        Ok(Self {
            authority: file("ca.pem"),
            certificate: file("leaf.pem"),
            key: file("leaf.key"),
        })
    }
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A plain tar.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A tar stream with these files: path, mode, content. Directories above them come first; owner is root,
/// time is 0, so the same files give the same bytes.
#[must_use]
pub fn tar_of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut made = std::collections::BTreeSet::new();
    for (path, mode, content) in files {
        let mut folder = String::new();
        let parts: Vec<&str> = path.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            folder.push_str(part);
            folder.push('/');
            if made.insert(folder.clone()) {
                append(&mut archive, &folder, tar::EntryType::Directory, 0o755, &[]);
            }
        }
        append(&mut archive, path, tar::EntryType::Regular, *mode, content);
    }
    archive.into_inner().unwrap_or_default()
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    // A vector takes everything; only a path that is too long could fail, which the test would see.
    let _ = archive.append_data(&mut header, path, content);
}

/// Packs bytes.
#[must_use]
pub fn pack(plain: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder
                .write_all(plain)
                .and_then(|()| encoder.finish())
                .unwrap_or_default()
        }
        Packing::Zstd => zstd::encode_all(plain, 1).unwrap_or_default(),
    }
}

/// Bytes that do not compress, the same for the same `seed`.
#[must_use]
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `sha256:<hex>` of `bytes`.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// An image for one platform, described in a few lines.
#[derive(Clone, Debug)]
pub struct TinyImage {
    architecture: String,
    config: Value,
    layers: Vec<(Vec<u8>, Packing)>,
}

impl TinyImage {
    /// An image without layers for `architecture` (`amd64`, `arm64`).
    #[must_use]
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            config: json!({}),
            layers: Vec::new(),
        }
    }

    /// Adds a layer: a tar stream and how it is packed.
    #[must_use]
    pub fn layer(mut self, tar: Vec<u8>, packing: Packing) -> Self {
        self.layers.push((tar, packing));
        self
    }

    /// Sets the `config` object (`{"Cmd": ["/x"], "Env": [...]}`).
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Writes the blobs and returns the manifest's descriptor.
    fn write(&self, layout: &Layout) -> Result<Value> {
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for (tar, packing) in &self.layers {
            diff_ids.push(digest_of(tar));
            let suffix = match packing {
                Packing::Plain => "",
                Packing::Gzip => "+gzip",
                Packing::Zstd => "+zstd",
            };
            layers.push(layout.blob(
                &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                &pack(tar, *packing),
            )?);
        }
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.blob(
            "application/vnd.oci.image.config.v1+json",
            &serde_json::to_vec(&config)?,
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut descriptor = layout.blob(
            "application/vnd.oci.image.manifest.v1+json",
            &serde_json::to_vec(&manifest)?,
        )?;
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        Ok(descriptor)
    }
}

/// An OCI layout being written.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
    names: BTreeMap<String, Value>,
}

impl Layout {
    /// Starts a layout in `directory`, which is created.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        fs::write(
            directory.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(Self {
            directory: directory.to_owned(),
            names: BTreeMap::new(),
        })
    }

    /// The layout's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes a blob and returns its descriptor.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = digest_of(bytes);
        fs::write(self.blob_file(&digest), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    /// Adds an image under `name`: one platform as a manifest, several as an index. Returns the digest
    /// that `name` stands for, then that of each platform's manifest.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn add(&mut self, name: &str, images: &[TinyImage]) -> Result<(String, Vec<String>)> {
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| image.write(self))
            .collect::<Result<_>>()?;
        let digest =
            |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
        let each = manifests.iter().map(digest).collect();
        let mut top = match &manifests[..] {
            [only] => only.clone(),
            _ => {
                let index = json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": manifests,
                });
                self.blob(
                    "application/vnd.oci.image.index.v1+json",
                    &serde_json::to_vec(&index)?,
                )?
            }
        };
        let named = digest(&top);
        top["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.names.insert(name.to_owned(), top);
        let index = json!({
            "schemaVersion": 2,
            "manifests": self.names.values().collect::<Vec<_>>(),
        });
        fs::write(
            self.directory.join("index.json"),
            serde_json::to_vec(&index)?,
        )?;
        Ok((named, each))
    }
}

/// A TCP wire to a port on loopback that can be slow, and that can be cut.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    state: Arc<WireState>,
}

#[derive(Debug, Default)]
struct WireState {
    /// Bytes per second towards the client; 0 is as fast as it goes.
    rate: AtomicU64,
    /// Connections are cut after so many bytes towards the client, while cuts are left.
    cut_after: AtomicU64,
    cuts: AtomicI64,
    carried: AtomicU64,
    closed: AtomicBool,
}

impl Wire {
    /// Listens on a free loopback port and connects each connection to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(WireState::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), state) = (client, Arc::clone(&shared)) else {
                    continue;
                };
                // A target that is down closes the client's connection: dropping it does.
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
                    continue;
                };
                std::thread::spawn(move || carry(client, server, &state));
            }
        });
        Ok(Self { port, state })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets at most so many bytes per second reach each client.
    pub fn slow(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Cuts the next `cuts` connections that carry `bytes` bytes to the client.
    pub fn cut(&self, bytes: u64, cuts: u32) {
        self.state.cut_after.store(bytes, Ordering::Relaxed);
        self.state.cuts.store(i64::from(cuts), Ordering::Relaxed);
    }

    /// How many bytes clients were sent, over all connections.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the listener; if that fails it is gone already.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn carry(mut client: TcpStream, mut server: TcpStream, state: &WireState) {
    if let (Ok(mut from), Ok(mut to)) = (client.try_clone(), server.try_clone()) {
        std::thread::spawn(move || {
            // However it ends, the other side is told so.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    let mut buffer = vec![0u8; 16 << 10];
    let mut sent = 0u64;
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
        sent += count as u64;
        state.carried.fetch_add(count as u64, Ordering::Relaxed);
        let rate = state.rate.load(Ordering::Relaxed);
        if let Some(wait) = (count as u64 * 1_000_000).checked_div(rate) {
            std::thread::sleep(Duration::from_micros(wait));
        }
        let limit = state.cut_after.load(Ordering::Relaxed);
        if limit > 0 && sent >= limit && state.cuts.fetch_sub(1, Ordering::Relaxed) > 0 {
            break;
        }
    }
    // They may be closed already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Changes one byte in the middle of a file.
///
/// # Errors
/// When the file cannot be read or written.
pub fn damage(path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    File::open(path)
        .with_context(|| format!("no file {}", path.display()))?
        .read_to_end(&mut bytes)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes)?;
    Ok(())
}
