//! What connects one machine to its host beside its root: published ports, mediation routes, and
//! the locks of its extra disks. All of it is there before the machine boots, and goes with it.

mod check;
mod disks;
mod gate;
mod links;
mod mediation;
mod publish;
mod target;

use std::{
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use microagent_protocol::{LaunchSpec, MediationRoute, PublishedPort, Readiness};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

pub(crate) use self::{check::validate, disks::busy_remedy};
use self::{disks::DiskLocks, gate::Gate, links::Links};
use crate::{
    Error,
    crew::{Crew, lock},
    engine::VSOCK_SOCKET,
    link, process,
};

/// How long nothing is accepted when descriptors or memory ran out.
const BREATH: Duration = Duration::from_millis(50);

/// Where connections come in.
#[derive(Debug)]
enum Entrance {
    Published {
        listener: TcpListener,
        guest_port: u16,
    },
    Mediation {
        listener: UnixListener,
        route: MediationRoute,
    },
}

/// The wiring of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Wiring(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ports: Vec<PublishedPort>,
    routes: Vec<MediationRoute>,
    /// The routes' sockets in the runtime directory.
    uds: std::path::PathBuf,
    links: Links,
    gate: Gate,
    /// The threads of connections. Nobody waits for them: they end with their sockets.
    crew: Crew,
    accepting: Mutex<Accepting>,
    /// Kept as long as the machine lives.
    _disks: DiskLocks,
}

#[derive(Debug)]
enum Accepting {
    Bound(Vec<Entrance>),
    /// The thread that accepts, and what tells it to end when closed.
    Running(JoinHandle<()>, UnixStream),
    Over,
}

impl Wiring {
    /// Locks disks, binds ports, and makes sure that required mediation targets answer.
    ///
    /// # Errors
    /// [`Error::DiskBusy`], [`Error::PortUnusable`], [`Error::MediationUnreachable`]; nothing is
    /// held then.
    pub(crate) fn prepare(spec: &LaunchSpec) -> Result<Self, Error> {
        let locks = DiskLocks::take(&spec.disks)?;
        let uds = spec.runtime_dir.join(VSOCK_SOCKET);
        let (mut entrances, mut ports) = (Vec::new(), Vec::new());
        for port in &spec.publish {
            let (listener, bound) = publish::bind(*port)?;
            ports.push(bound);
            entrances.push(Entrance::Published {
                listener,
                guest_port: port.guest_port,
            });
        }
        mediation::check(&spec.mediation)?;
        let wiring = Self(Arc::new(Shared {
            ports,
            routes: spec.mediation.clone(),
            uds,
            links: Links::new(process::raise_descriptor_limit()),
            gate: Gate::default(),
            crew: Crew::default(),
            accepting: Mutex::new(Accepting::Over),
            _disks: locks,
        }));
        for route in &spec.mediation {
            entrances.push(Entrance::Mediation {
                listener: mediation::listen(&wiring.0.uds, route)?,
                route: route.clone(),
            });
        }
        *lock(&wiring.0.accepting) = Accepting::Bound(entrances);
        Ok(wiring)
    }

    /// The published ports, each with the host's port that was bound.
    pub(crate) fn ports(&self) -> &[PublishedPort] {
        &self.0.ports
    }

    /// How many connections are carried.
    pub(crate) fn connections(&self) -> usize {
        self.0.links.count()
    }

    /// Whether the mediation targets answer; takes a moment. `None` without routes.
    pub(crate) fn mediation_readiness(&self) -> Option<Readiness> {
        if self.0.links.is_closed() && !self.0.routes.is_empty() {
            return Some(Readiness {
                detail: Some("the machine is cut off".to_owned()),
                ..Readiness::default()
            });
        }
        mediation::readiness(&self.0.routes)
    }

    /// Accepts from now on. What comes before the guest is ready waits for it.
    pub(crate) fn start(&self) -> Result<(), Error> {
        let mut accepting = lock(&self.0.accepting);
        let entrances = match std::mem::replace(&mut *accepting, Accepting::Over) {
            Accepting::Bound(entrances) if !entrances.is_empty() => entrances,
            other => {
                *accepting = other;
                return Ok(());
            }
        };
        let (stop, stopped) =
            UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
        let acceptor = Acceptor {
            entrances,
            links: self.0.links.clone(),
            gate: self.0.gate.clone(),
            crew: self.0.crew.clone(),
        };
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || acceptor.run(&stopped))
            .map_err(Error::system("start a thread"))?;
        *accepting = Accepting::Running(thread, stop);
        Ok(())
    }

    /// The guest behind `vsock` takes connections.
    pub(crate) fn open(&self, vsock: &Path) {
        self.0.gate.open(vsock);
    }

    /// Cuts every connection, frees the ports and accepts nothing any more. On return it is so.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

impl Shared {
    fn close(&self) {
        self.gate.close();
        self.links.close();
        let accepting = std::mem::replace(&mut *lock(&self.accepting), Accepting::Over);
        if let Accepting::Running(thread, stop) = accepting {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the thread that accepts connections panicked");
            }
        }
        for route in &self.routes {
            link::unlink(&vsock_path(&self.uds, route.port));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// The hybrid vsock's socket for a port of the host.
fn vsock_path(uds: &Path, port: u16) -> std::path::PathBuf {
    let mut path = uds.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// The thread that accepts at every entrance.
struct Acceptor {
    entrances: Vec<Entrance>,
    links: Links,
    gate: Gate,
    crew: Crew,
}

impl Acceptor {
    fn run(self, stopped: &UnixStream) {
        let mut ready: Vec<_> = self
            .entrances
            .iter()
            .map(|entrance| match entrance {
                Entrance::Published { listener, .. } => listener.as_fd(),
                Entrance::Mediation { listener, .. } => listener.as_fd(),
            })
            .chain([stopped.as_fd()])
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut ready, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return tracing::error!("cannot wait for connections: {error}"),
            }
            let [entrances @ .., stop] = &ready[..] else {
                return;
            };
            if !stop.revents().is_empty() {
                return;
            }
            let mut spent = false;
            for (at, fd) in entrances.iter().enumerate() {
                if !fd.revents().is_empty() {
                    spent |= !self.accept(at);
                }
            }
            if spent {
                thread::sleep(BREATH);
            }
        }
    }

    /// Takes one connection; gives whether there is room for more of them.
    fn accept(&self, at: usize) -> bool {
        let accepted = match &self.entrances[at] {
            Entrance::Published {
                listener,
                guest_port,
            } => listener
                .accept()
                .and_then(|(client, _)| self.published(at, client, *guest_port)),
            Entrance::Mediation { listener, route } => listener
                .accept()
                .and_then(|(guest, _)| self.mediated(at, guest, route)),
        };
        match accepted.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => true,
            // Whoever knocked went away again.
            Err((Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED), _)) => true,
            Err((_, error)) => {
                tracing::warn!("cannot take a connection: {error}");
                false
            }
        }
    }

    fn published(
        &self,
        at: usize,
        client: std::net::TcpStream,
        guest_port: u16,
    ) -> std::io::Result<()> {
        let Some(link) = self.links.admit(at, publish::MAX_CONNECTIONS) else {
            publish::reset(&client);
            return Ok(());
        };
        let gate = self.gate.clone();
        self.crew.spawn("published", move || {
            publish::carry(client, guest_port, &gate, &link);
        })
    }

    fn mediated(
        &self,
        at: usize,
        guest: UnixStream,
        route: &MediationRoute,
    ) -> std::io::Result<()> {
        // One too many is closed: the guest sees its connection end.
        let Some(link) = self.links.admit(at, route.max_connections) else {
            return Ok(());
        };
        let route = route.clone();
        self.crew.spawn("mediation", move || {
            mediation::carry(guest, &route, &link);
        })
    }
}
