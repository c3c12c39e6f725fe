//! One health probe: a command in the guest, or a request to a published port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
    time::Duration,
};

use microagent_protocol::{
    FrameKind, FrameReader,
    exec::{ExecRequest, ExecRole, ExitReport, ExitStatus},
    supervisor::Command,
};

use super::{
    health::{HealthCheck, HealthProbe},
    http,
};
use crate::{
    error::Result,
    run::drive::describe,
    supervisor::client::{Begun, Opening},
    workspaces::Workspace,
};

/// A probe that can be made without the workspace at hand.
pub(super) enum Probe {
    Exec(Box<Opening>, Duration),
    Http(SocketAddr, String, Duration),
    /// It cannot be made.
    Hopeless(String),
}

impl Probe {
    /// Prepares the probe of `workspace`'s machine that `check` describes.
    pub(super) fn new(workspace: &Workspace<'_>, check: &HealthCheck) -> Result<Self> {
        let control = workspace.connect()?;
        match &check.probe {
            HealthProbe::Exec(argv) => {
                let request = ExecRequest {
                    role: ExecRole::Command,
                    argv: argv.clone(),
                    ..workspace.manifest().session.clone()
                };
                Ok(Self::Exec(
                    Box::new(control.open(Command::Exec(request))?),
                    check.timeout(),
                ))
            }
            HealthProbe::HttpGet { port, path } => {
                let status = control.status(Command::Inspect, check.timeout())?;
                let bound = status
                    .ports
                    .iter()
                    .find(|bound| bound.guest_port == port.get());
                Ok(match bound {
                    Some(bound) => {
                        let address = reachable(bound.host_address());
                        Self::Http(address, path.clone(), check.timeout())
                    }
                    None => Self::Hopeless(format!("port {port} is not published")),
                })
            }
        }
    }

    /// Makes it; why the machine is not well, else.
    pub(super) fn run(self) -> Result<(), String> {
        match self {
            Self::Exec(exec, limit) => run_exec(*exec, limit),
            Self::Http(address, path, limit) => match http::status(address, &path, limit) {
                Ok(200..400) => Ok(()),
                Ok(status) => Err(format!("GET {path} was answered with {status}")),
                Err(error) => Err(format!("GET {path} at {address}: {error}")),
            },
            Self::Hopeless(reason) => Err(reason),
        }
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

fn run_exec(exec: Opening, limit: Duration) -> Result<(), String> {
    let line = exec
        .stream
        .try_clone()
        .map_err(|error| format!("the session cannot be watched: {error}"))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let outcome =
            exec.start()
                .map_err(|error| error.to_string())
                .and_then(|begun| match begun {
                    Begun::Failed(status) => Ok(status),
                    Begun::Process(stream) => to_exit(stream),
                    Begun::Line(..) | Begun::Console(_) => {
                        Err("the supervisor began something else".to_owned())
                    }
                });
        // Nobody waits any more when the time was up.
        let _ = sender.send(outcome);
    });
    let outcome = receiver.recv_timeout(limit);
    // The guest ends a process whose session is closed; one that ended closed it itself.
    let _ = line.shutdown(Shutdown::Both);
    match outcome {
        Ok(Ok(ExitStatus::Exited { code: 0 })) => Ok(()),
        Ok(Ok(status)) => Err(format!("the probe {}", describe(&status))),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!(
            "the probe did not end within {}",
            humantime::format_duration(limit)
        )),
    }
}

/// Reads a session to its end; what it prints is nobody's.
fn to_exit(stream: UnixStream) -> Result<ExitStatus, String> {
    let mut reader = FrameReader::new(stream);
    loop {
        let frame = reader.require().map_err(|error| error.to_string())?;
        if frame.kind == FrameKind::Exit {
            let report: ExitReport = frame.json().map_err(|error| error.to_string())?;
            return Ok(report.status);
        }
    }
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
