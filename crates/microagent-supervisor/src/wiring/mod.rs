//! What connects one machine to its host beside its root: published ports, mediation routes, and
//! the locks of its extra disks. All of it is there before the machine boots, and goes with it.

mod acceptor;
mod check;
mod disks;
mod gate;
mod links;
mod mediation;
mod publish;
mod target;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use microagent_protocol::{LaunchSpec, MediationRoute, PublishedPort, Readiness};

use self::{
    acceptor::{Acceptor, Entrance, Running},
    disks::DiskLocks,
    gate::Gate,
    links::Links,
};
pub(crate) use self::{check::validate, disks::busy_remedy};
use crate::{
    Error,
    crew::{Crew, lock},
    engine::{MACHINE_DIRECTORY, VSOCK_SOCKET},
    link, process,
};

/// The wiring of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Wiring(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ports: Mutex<Vec<PublishedPort>>,
    routes: Vec<MediationRoute>,
    /// The routes' sockets are beside it.
    uds: std::path::PathBuf,
    links: Links,
    gate: Gate,
    accepting: Mutex<Accepting>,
    /// Kept as long as the machine lives.
    _disks: DiskLocks,
}

#[derive(Debug)]
enum Accepting {
    Bound(Acceptor),
    Running(Running),
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
        let uds = spec.runtime_dir.join(MACHINE_DIRECTORY).join(VSOCK_SOCKET);
        let (mut entrances, mut ports) = (Vec::new(), Vec::new());
        for port in &spec.publish {
            let (listener, bound) = publish::bind(*port)?;
            ports.push(bound);
            entrances.push(Entrance::published(listener, &bound));
        }
        mediation::check(&spec.mediation)?;
        let links = Links::new(process::raise_descriptor_limit());
        let gate = Gate::default();
        let wiring = Self(Arc::new(Shared {
            ports: Mutex::new(ports),
            routes: spec.mediation.clone(),
            uds,
            links: links.clone(),
            gate: gate.clone(),
            accepting: Mutex::new(Accepting::Over),
            _disks: locks,
        }));
        for route in &spec.mediation {
            let listener = mediation::listen(&wiring.0.uds, route)?;
            entrances.push(Entrance::mediation(listener, route.clone()));
        }
        *lock(&wiring.0.accepting) = Accepting::Bound(Acceptor {
            entrances,
            links,
            gate,
            // Nobody waits for the threads of connections: they end with their sockets.
            crew: Crew::default(),
        });
        Ok(wiring)
    }

    /// The published ports, each with the host's port that was bound.
    pub(crate) fn ports(&self) -> Vec<PublishedPort> {
        lock(&self.0.ports).clone()
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
        if let Accepting::Bound(acceptor) = &*accepting
            && !acceptor.entrances.is_empty()
        {
            *accepting = Accepting::Running(acceptor.clone().start()?);
        }
        Ok(())
    }

    /// Has the published ports listen at other addresses of the host, and gives whether that
    /// changed anything. `wanted` are the same ports in the same order; a host's port of 0 stands
    /// for the one that is bound. What is connected stays so.
    ///
    /// # Errors
    /// [`Error::OtherPorts`], [`Error::CutOff`], [`Error::PortUnusable`]; all is as before then.
    pub(crate) fn rebind(&self, wanted: &[PublishedPort]) -> Result<bool, Error> {
        let mut ports = lock(&self.0.ports);
        let wanted = publish::same_elsewhere(&ports, wanted)?;
        if wanted == *ports {
            return Ok(false);
        }
        let mut accepting = lock(&self.0.accepting);
        let current = match &*accepting {
            Accepting::Bound(acceptor) => acceptor,
            Accepting::Running(running) => &running.acceptor,
            Accepting::Over => return Err(Error::CutOff),
        };
        let next = current.elsewhere(&ports, &wanted)?.start()?;
        if let Accepting::Running(running) =
            std::mem::replace(&mut *accepting, Accepting::Running(next))
        {
            running.stop().accept_last();
        }
        *ports = wanted;
        Ok(true)
    }

    /// The guest behind `vsock` takes connections; `half_close` as [`microagent_protocol::Capabilities`] has it.
    pub(crate) fn open(&self, vsock: &Path, half_close: bool) {
        self.0.gate.open(vsock, half_close);
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
        let acceptor = match accepting {
            Accepting::Bound(acceptor) => Some(acceptor),
            Accepting::Running(running) => Some(running.stop()),
            Accepting::Over => None,
        };
        if let Some(acceptor) = acceptor {
            acceptor.shut();
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
