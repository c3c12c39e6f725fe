//! A real registry on loopback, images small enough to read, and a wire that can be slow or cut.

mod bytes;
mod certificates;
mod layout;
mod names;
mod nginx;
mod proxy;
mod scripted;
mod signing;
mod tokens;
mod tool;
mod wire;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tempfile::TempDir;

pub use self::bytes::{Packing, damage, digest_of, noise, pack, tar_of};
pub use self::certificates::Certificates;
pub use self::layout::{Layout, TinyImage};
pub use self::names::Names;
pub use self::nginx::Nginx;
pub use self::proxy::Proxy;
pub use self::scripted::{Answer, Request, Scripted};
pub use self::signing::SigningKey;
pub use self::tokens::{Asked, TokenSetup, Tokens};
use self::tool::missing;
pub use self::tool::run_tool;
pub use self::wire::Wire;
use crate::Port;

const DEADLINE: Duration = Duration::from_secs(30);

/// How a [`Registry`] is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The one user and password it accepts; everybody without.
    pub login: Option<(String, String)>,
    /// Certificate and key (PEM files) to speak TLS with; plain HTTP without.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The authority (PEM file) whose certificates clients must show, besides.
    pub clients: Option<PathBuf>,
    /// The token service it sends everybody to.
    pub tokens: Option<Tokens>,
}

/// Debian's `docker-registry` on a free loopback port, storing into a directory of its own; killed when
/// dropped.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    port: Port,
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
            port: Port::free(),
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
            "http": {"addr": self.port.address().to_string(), "secret": "test"},
        });
        if self.setup.login.is_some() {
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": root.join("htpasswd")}});
        }
        if let Some(tokens) = &self.setup.tokens {
            config["auth"] = tokens.section();
        }
        if let Some((certificate, key)) = &self.setup.tls {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        if let Some(authority) = &self.setup.clients {
            config["http"]["tls"]["clientcas"] = json!([authority]);
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
        // It logs that it listens; the log is read to its end so that it never blocks.
        let (found, listening) = std::sync::mpsc::channel();
        let words = format!("listening on {}", self.port.address());
        std::thread::spawn(move || {
            let mut seen = String::new();
            for line in BufReader::new(log).lines().map_while(io::Result::ok) {
                seen.push_str(&line);
                seen.push('\n');
                if line.contains(&words) {
                    // The receiver is gone once it has its answer.
                    let _ = found.send(Ok(()));
                }
            }
            let _ = found.send(Err(seen));
        });
        match listening.recv_timeout(DEADLINE) {
            Ok(Ok(())) => {}
            Ok(Err(log)) => bail!("docker-registry ended: {log}"),
            Err(_) => bail!("docker-registry did not listen within {DEADLINE:?}"),
        }
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(self.port.address()).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not answer on port {}", self.port());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts it again with other settings, and the same content. (A login that was not there before
    /// cannot be added.)
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub fn reconfigure(&mut self, setup: Setup) -> Result<()> {
        self.setup = setup;
        self.restart()
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
        self.port.number()
    }

    /// The full reference of `name` (`debian:12`) in this registry.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.port.address())
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
