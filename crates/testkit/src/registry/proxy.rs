//! A real proxy between us and a registry.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::tool::missing;
use crate::Port;

const DEADLINE: Duration = Duration::from_secs(30);

/// Debian's `tinyproxy` on a free loopback port; killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    port: Port,
    directory: TempDir,
}

impl Proxy {
    /// Starts it with these lines in its configuration, such as `BasicAuth USER PASSWORD` or
    /// `ConnectPort 443` (no other port then).
    ///
    /// # Errors
    /// When `tinyproxy` is missing or does not come up.
    pub fn start(lines: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = Port::free();
        let config = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nLogFile \"{}\"\nLogLevel Connect\n{lines}\n",
            port.number(),
            directory.path().join("log").display()
        );
        let path = directory.path().join("tinyproxy.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("tinyproxy");
        command
            .arg("-d")
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| missing(&command, "tinyproxy"))?;
        let proxy = Self {
            child,
            port,
            directory,
        };
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(proxy.port.address()).is_err() {
            if Instant::now() > deadline {
                bail!("tinyproxy does not answer: {}", proxy.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(proxy)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
