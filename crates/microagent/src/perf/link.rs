//! How fast bytes come to a guest and back: by its network, by a published port, by its vsock.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc::{Sender, channel},
    thread,
    time::SystemTime,
};

use microagent_protocol::{
    InvalidWiring, MediationRoute, NetworkMode, PublishedPort, Timestamp, measure::task,
};

use super::{
    Benchmark, PerfReport, Rounds, Series, Subject, Unit, agent, idle,
    peer::{self, LIMIT, Peer, Trip},
};
use crate::{
    config::Config,
    error::{Error, Result},
    io::{RunController, RunIo},
    options::RunOptions,
    workspaces::Workspace,
};

/// Where the guest listens, on its loopback, and the vsock port of the host.
const PORT: u16 = 5201;

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// The machine. Its command is not run. Without a network only the published port is measured.
    pub run: RunOptions,
    /// How often.
    pub rounds: Rounds,
}

impl NetOptions {
    /// Ten times after one that does not count, in a machine like that of `run`.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            rounds: ROUNDS,
        }
    }
}

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct VsockOptions {
    /// The machine. Its command is not run.
    pub run: RunOptions,
    /// How often.
    pub rounds: Rounds,
}

impl VsockOptions {
    /// Ten times after one that does not count, in a machine like that of `run`.
    #[must_use]
    pub fn new(run: RunOptions) -> Self {
        Self {
            run,
            rounds: ROUNDS,
        }
    }
}

const ROUNDS: Rounds = Rounds {
    warm_up: 1,
    iterations: 10,
};

pub(super) fn net(config: &Config, options: &NetOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let token = peer::token()?;
    let run = options.run.clone().publish(PublishedPort {
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        host_port: 0,
        guest_port: PORT,
    });
    let by_network = run.network == NetworkMode::User;
    let (samples, subject) = idle::machine(config, &run, |workspace| {
        let mut all = Vec::new();
        if by_network {
            let host = outward()?;
            let listener = TcpListener::bind((host, 0)).map_err(|error| on(host, error))?;
            let address = listener.local_addr().map_err(|error| on(host, error))?;
            let address = address.to_string();
            let task = [task::CONNECT, address.as_str(), token.as_str()];
            all.push((
                "user",
                called(workspace, &task, &listener, &token, options.rounds)?,
            ));
        }
        all.push(("published", calling(workspace, &token, options.rounds)?));
        Ok(all)
    })?;
    let series = samples.into_iter().flat_map(|(way, trips)| {
        series(&trips).map(|(name, unit, samples)| (format!("{way}_{name}"), unit, samples))
    });
    Ok(report(Benchmark::Net, at, subject, options.rounds, series))
}

pub(super) fn vsock(config: &Config, options: &VsockOptions) -> Result<PerfReport> {
    options.rounds.check()?;
    let at = SystemTime::now().into();
    let token = peer::token()?;
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // It is there before the machine is: a route is required to lead somewhere.
    let listener = TcpListener::bind((host, 0)).map_err(|error| on(host, error))?;
    let address = listener.local_addr().map_err(|error| on(host, error))?;
    let route: MediationRoute = format!("{PORT}={address}")
        .parse()
        .map_err(|error: InvalidWiring| Error::invalid("--mediation", error.to_string()))?;
    let run = options.run.clone().mediation(route);
    let port = PORT.to_string();
    let (trips, subject) = idle::machine(config, &run, |workspace| {
        let task = [task::VSOCK, port.as_str(), token.as_str()];
        called(workspace, &task, &listener, &token, options.rounds)
    })?;
    let series = series(&trips).map(|(name, unit, samples)| (name.to_owned(), unit, samples));
    Ok(report(
        Benchmark::Vsock,
        at,
        subject,
        options.rounds,
        series,
    ))
}

/// What is told of trips.
fn series(trips: &[Trip]) -> [(&'static str, Unit, Vec<f64>); 3] {
    let of = |pick: fn(&Trip) -> f64| trips.iter().map(pick).collect();
    let rate = Unit::MebibytesPerSecond;
    [
        ("round_trip", Unit::Milliseconds, of(|it| it.round_trip)),
        ("into_guest", rate, of(|it| it.into_guest)),
        ("out_of_guest", rate, of(|it| it.out_of_guest)),
    ]
}

fn report(
    benchmark: Benchmark,
    at: Timestamp,
    subject: Subject,
    rounds: Rounds,
    series: impl IntoIterator<Item = (String, Unit, Vec<f64>)>,
) -> PerfReport {
    let series = series
        .into_iter()
        .filter_map(|(name, unit, samples)| Series::new(&name, unit, false, samples))
        .collect();
    PerfReport::new(benchmark, at, subject, rounds.warm_up, series)
}

/// The guest comes to `listener`.
fn called(
    workspace: &Workspace<'_>,
    task: &[&str],
    listener: &TcpListener,
    token: &str,
    rounds: Rounds,
) -> Result<Vec<Trip>> {
    with_agent(workspace, task, RunIo::captured(), || {
        let stream = peer::accept(listener, token).map_err(|error| lost(workspace, &error))?;
        trips(workspace, stream, rounds)
    })
}

/// The guest listens, and is gone to by the port of the host that is published for it.
fn calling(workspace: &Workspace<'_>, token: &str, rounds: Rounds) -> Result<Vec<Trip>> {
    let runtime = workspace.network()?.network.runtime;
    let ports = runtime.map(|runtime| runtime.ports).unwrap_or_default();
    let port = ports.iter().find(|port| port.guest_port == PORT);
    let address = port.map(|port| SocketAddr::new(port.host, port.host_port));
    let address = address.ok_or_else(|| Error::NotMeasured {
        workspace: workspace.name().to_string(),
        reason: "its supervisor does not tell of the published port".to_owned(),
    })?;
    let (ready, listens) = channel();
    let io = RunIo::new(Said(ready), io::sink());
    let port = PORT.to_string();
    let task = [task::LISTEN, port.as_str(), token];
    with_agent(workspace, &task, io, || {
        // Its end is told as such: the agent's own words are the better ones.
        let gone = |_| io::Error::new(io::ErrorKind::TimedOut, "the guest does not listen");
        let stream = listens.recv_timeout(LIMIT).map_err(gone);
        let stream = stream.and_then(|()| TcpStream::connect_timeout(&address, LIMIT));
        let stream = stream.and_then(|mut stream| {
            stream.write_all(token.as_bytes())?;
            Ok(stream)
        });
        trips(
            workspace,
            stream.map_err(|error| lost(workspace, &error))?,
            rounds,
        )
    })
}

/// Does `work` while the agent does `task` in the guest; it ends with `work`.
fn with_agent<T>(
    workspace: &Workspace<'_>,
    task: &[&str],
    io: RunIo,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let ended = Ended(io.controller());
    thread::scope(|scope| {
        let agent = scope.spawn(move || agent::run(workspace, task, io));
        let done = work();
        let by_itself = agent.is_finished();
        drop(ended);
        match (done, agent.join()) {
            // Why the guest did not come is worth more than that it did not.
            (Err(_), Ok(Err(cause))) if by_itself => Err(cause),
            (done, _) => done,
        }
    })
}

fn trips(workspace: &Workspace<'_>, stream: TcpStream, rounds: Rounds) -> Result<Vec<Trip>> {
    let mut peer = Peer::new(stream).map_err(|error| lost(workspace, &error))?;
    rounds.measure(|| peer.trip().map_err(|error| lost(workspace, &error)))
}

fn lost(workspace: &Workspace<'_>, error: &io::Error) -> Error {
    Error::NotMeasured {
        workspace: workspace.name().to_string(),
        reason: format!("the connection with its guest: {error}"),
    }
}

fn on(host: IpAddr, error: io::Error) -> Error {
    Error::Io {
        doing: "listen at",
        path: host.to_string().into(),
        source: error,
    }
}

/// The host's address towards everybody else: a guest is kept from the host's loopback. Nothing is sent.
fn outward() -> Result<IpAddr> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        // An address of documentation: any that is not near would do.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    });
    found.map_err(|error| {
        Error::invalid(
            "--network",
            format!(
                "this host has no route outwards ({error}), so a guest cannot reach it by its network; \
                 use isolated to measure the published port alone"
            ),
        )
    })
}

/// Ends a session's process when it goes; one that has ended is none the wiser.
struct Ended(RunController);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Tells that something was said.
struct Said(Sender<()>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody waits any more after the first word.
        let _ = self.0.send(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
