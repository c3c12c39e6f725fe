//! A real nginx in front of a registry: redirects, ranges, slowness, limits, and answers that break off.

use std::fs;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::tool::missing;
use crate::Port;

const DEADLINE: Duration = Duration::from_secs(30);

/// nginx on free loopback ports; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    ports: Vec<Port>,
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
        let ports: Vec<_> = (0..count).map(|_| Port::free()).collect();
        let numbers: Vec<_> = ports.iter().map(Port::number).collect();
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
            servers(&numbers)
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
        for port in &self.ports {
            while TcpStream::connect(port.address()).is_err() {
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
        self.ports[n].number()
    }

    /// The full reference of `name` at the `n`th server.
    #[must_use]
    pub fn reference(&self, n: usize, name: &str) -> String {
        format!("{}/{name}", self.ports[n].address())
    }

    /// The lines of its log that speak of the `n`th server.
    ///
    /// # Panics
    /// When it answers no more.
    #[must_use]
    pub fn seen(&self, n: usize) -> Vec<String> {
        // It notes a request after the answer's last byte, and before it looks at who comes next.
        let next = TcpStream::connect(self.ports[n].address()).expect("nginx answers");
        next.shutdown(Shutdown::Write).expect("nginx answers");
        let said = (&next).read(&mut [0]).expect("nginx answers");
        assert_eq!(said, 0, "who asks nothing is told nothing");
        let prefix = format!("{} ", self.port(n));
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
