//! The thread that accepts at every entrance.

use std::{
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use microagent_protocol::{MediationRoute, PublishedPort};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{Shutdown, shutdown},
};

use super::{gate::Gate, links::Links, mediation, publish};
use crate::{Error, crew::Crew};

/// How long nothing is accepted when descriptors or memory ran out.
const BREATH: Duration = Duration::from_millis(50);

/// Where connections come in.
#[derive(Clone, Debug)]
pub(super) enum Entrance {
    Published {
        listener: Arc<TcpListener>,
        guest_port: u16,
    },
    Mediation {
        listener: Arc<UnixListener>,
        route: MediationRoute,
    },
}

impl Entrance {
    pub(super) fn published(listener: TcpListener, port: &PublishedPort) -> Self {
        Self::Published {
            listener: Arc::new(listener),
            guest_port: port.guest_port,
        }
    }

    pub(super) fn mediation(listener: UnixListener, route: MediationRoute) -> Self {
        Self::Mediation {
            listener: Arc::new(listener),
            route,
        }
    }

    /// Nobody listens there any more. Closing is not enough: a program that is started just now has the listener
    /// open, too, until its exec.
    fn shut(&self) {
        // Fails only on hosts where closing is all there is.
        let _ = match self {
            Self::Published { listener, .. } => shutdown(listener, Shutdown::Both),
            Self::Mediation { listener, .. } => shutdown(listener, Shutdown::Both),
        };
    }
}

/// What accepts: published ports first, in their order.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    pub(super) entrances: Vec<Entrance>,
    pub(super) links: Links,
    pub(super) gate: Gate,
    pub(super) crew: Crew,
}

/// One that does, until it is stopped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) acceptor: Acceptor,
    thread: JoinHandle<()>,
    /// Tells the thread to end when closed.
    stop: UnixStream,
}

impl Running {
    /// Ends the thread; on return it has ended.
    pub(super) fn stop(self) -> Acceptor {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that accepts connections panicked");
        }
        self.acceptor
    }
}

impl Acceptor {
    /// Accepts from now on.
    pub(super) fn start(self) -> Result<Running, Error> {
        let (stop, stopped) =
            UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
        let accepting = self.clone();
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || accepting.run(&stopped))
            .map_err(Error::system("start a thread"))?;
        Ok(Running {
            acceptor: self,
            thread,
            stop,
        })
    }

    /// Nobody listens any more.
    pub(super) fn shut(self) {
        self.entrances.iter().for_each(Entrance::shut);
    }

    /// The same with published ports that listen as `to` says where that differs from `from`.
    ///
    /// # Errors
    /// [`Error::PortUnusable`]; the old ones listen on in any case.
    pub(super) fn elsewhere(
        &self,
        from: &[PublishedPort],
        to: &[PublishedPort],
    ) -> Result<Self, Error> {
        let mut next = self.clone();
        let moves = || from.iter().zip(to).zip(&self.entrances);
        for (((old, new), _), entrance) in moves().zip(&mut next.entrances) {
            if old == new {
                continue;
            }
            // Listeners of ours that go, and until then have an address that the new one covers.
            let going: Vec<_> = moves()
                .filter(|((old, new), _)| old != new)
                .filter(|((old, _), _)| publish::overlap(old, new))
                .filter_map(|(_, entrance)| match entrance {
                    Entrance::Published { listener, .. } => Some(&**listener),
                    Entrance::Mediation { .. } => None,
                })
                .collect();
            let (listener, bound) = publish::bind_instead(*new, &going)?;
            *entrance = Entrance::published(listener, &bound);
        }
        Ok(next)
    }

    /// Takes what has come in already at entrances that are about to close.
    pub(super) fn accept_last(self) {
        for at in 0..self.entrances.len() {
            while let Accepted::One = self.accept(at) {}
        }
    }

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
                    spent |= self.accept(at) == Accepted::NoRoom;
                }
            }
            if spent {
                thread::sleep(BREATH);
            }
        }
    }

    /// Takes one connection, if there is one.
    fn accept(&self, at: usize) -> Accepted {
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
            Ok(()) => Accepted::One,
            // Whoever knocked went away again.
            Err((Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED), _)) => Accepted::None,
            Err((_, error)) => {
                tracing::warn!("cannot take a connection: {error}");
                Accepted::NoRoom
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

/// What came of accepting a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    One,
    None,
    /// There are no more descriptors, or no memory.
    NoRoom,
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, net::TcpStream};

    use super::*;

    #[test]
    fn a_port_is_free_though_a_program_about_to_start_has_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // What a child has between fork and exec.
        let inherited = listener.try_clone().unwrap();
        let entrance = Entrance::published(listener, &"0:80".parse().unwrap());
        entrance.shut();
        drop(entrance);
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        TcpListener::bind(address).unwrap();
        drop(inherited);
    }
}
