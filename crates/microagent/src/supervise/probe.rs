//! One health probe: a command in the guest, or a request to a published port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use microagent_protocol::supervisor::Command;

use super::{
    health::{HealthCheck, HealthProbe},
    http,
};
use crate::{
    config::Config,
    error::Result,
    exec::ExecOptions,
    io::RunIo,
    workspaces::{Workspace, Workspaces},
};

/// How much of what a probe prints last is told, in characters.
const MAX_REASON: usize = 200;

/// A probe that can be made in any thread.
pub(super) struct Probe {
    config: Config,
    workspace: String,
    probe: HealthProbe,
    limit: Duration,
}

impl Probe {
    /// The probe of `workspace`'s machine that `check` describes.
    pub(super) fn new(workspace: &Workspace<'_>, check: &HealthCheck) -> Self {
        Self {
            config: workspace.config().clone(),
            workspace: workspace.name().to_string(),
            probe: check.probe.clone(),
            limit: check.timeout(),
        }
    }

    /// Makes it; why the machine is not well, else.
    pub(super) fn run(self) -> Result<(), String> {
        let workspace = Workspaces::new(&self.config)
            .open(&self.workspace)
            .map_err(|error| error.to_string())?;
        match &self.probe {
            HealthProbe::Exec(argv) => self.exec(&workspace, argv),
            HealthProbe::HttpGet { port, path } => {
                let address = self
                    .address(&workspace, port.get())
                    .map_err(|error| error.to_string())?
                    .ok_or_else(|| format!("port {port} is not published"))?;
                match http::status(address, path, self.limit) {
                    Ok(200..400) => Ok(()),
                    Ok(status) => Err(format!("GET {path} was answered with {status}")),
                    Err(error) => Err(format!("GET {path} at {address}: {error}")),
                }
            }
        }
    }

    fn exec(&self, workspace: &Workspace<'_>, argv: &[String]) -> Result<(), String> {
        let options = ExecOptions::new(argv)
            .timeout(self.limit)
            .ready_timeout(self.limit);
        let result = workspace
            .exec(&options, RunIo::captured())
            .map_err(|error| error.to_string())?;
        if result.exit_code == 0 {
            return Ok(());
        }
        if result.timed_out {
            let limit = humantime::format_duration(self.limit);
            return Err(format!("the probe was not over within {limit}"));
        }
        let code = result.exit_code;
        let said = [&result.stderr, &result.stdout]
            .into_iter()
            .find_map(|output| output.data.lines().rfind(|line| !line.trim().is_empty()));
        Err(match said {
            Some(line) => {
                let line: String = line.trim().chars().take(MAX_REASON).collect();
                format!("the probe exited with code {code}: {line}")
            }
            None => format!("the probe exited with code {code}"),
        })
    }

    /// Where the published port is reached.
    fn address(&self, workspace: &Workspace<'_>, port: u16) -> Result<Option<SocketAddr>> {
        let status = workspace.connect()?.status(Command::Inspect, self.limit)?;
        let bound = status.ports.iter().find(|bound| bound.guest_port == port);
        Ok(bound.map(|bound| reachable(bound.host_address())))
    }
}

/// Where somebody on this host reaches what listens at `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_at_the_loopback() {
        for (bound, reached) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
