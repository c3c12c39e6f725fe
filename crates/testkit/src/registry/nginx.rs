//! A real nginx in front of a registry: redirects, ranges, slowness, limits, and answers that break off.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::tool::missing;

const DEADLINE: Duration = Duration::from_secs(30);

/// nginx on free loopback ports; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    ports: Vec<u16>,
    directory: TempDir,
}

impl Nginx {
    /// Starts it with as many ports as `count`; `servers` writes the `server` blocks for them. Each
    /// request is logged: port, method, URI, status, then the `Authorization` and `Range` headers.
    ///
    /// # Errors
    /// When nginx is missing or refuses its configuration.
    pub fn start(count: usize, servers: impl Fn(&[u16]) -> String) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let ports = free_ports(count)?;
        let root = directory.path().display();
        let config = format!(
            r#"daemon off;
master_process off;
pid {root}/pid;
error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format seen '$server_port $request_method $request_uri $status "$http_authorization" "$http_range"';
    access_log {root}/access.log seen;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    client_max_body_size 0;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    limit_req_zone $server_port zone=asked:1m rate=1r/s;
{}
}}
"#,
            servers(&ports)
        );
        let path = directory.path().join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("nginx");
        command
            .arg("-e")
            .arg(directory.path().join("error.log"))
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| missing(&command, "nginx-light"))?;
        let mut nginx = Self {
            child,
            ports,
            directory,
        };
        nginx.wait_until_up()?;
        Ok(nginx)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        for port in self.ports.clone() {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                    let log = fs::read_to_string(self.directory.path().join("error.log"));
                    bail!("nginx does not answer: {}", log.unwrap_or_default());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// The port of the `n`th server.
    #[must_use]
    pub fn port(&self, n: usize) -> u16 {
        self.ports[n]
    }

    /// The full reference of `name` at the `n`th server.
    #[must_use]
    pub fn reference(&self, n: usize, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.ports[n])
    }

    /// The lines of its log that speak of the `n`th server.
    #[must_use]
    pub fn seen(&self, n: usize) -> Vec<String> {
        let prefix = format!("{} ", self.ports[n]);
        let log: PathBuf = self.directory.path().join("access.log");
        fs::read_to_string(log)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that were free a moment ago; all are held until all are known.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<_>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
