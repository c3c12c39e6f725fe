//! The connections that are carried between host and guest: counted, bounded, and cut all at once.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use rustix::net::{Shutdown, shutdown};

use crate::crew::lock;

/// Descriptors of this process that one connection takes: its two ends here, and the vsock
/// device's own.
const DESCRIPTORS: u64 = 3;

/// Descriptors for everything else: sessions, clients, files.
const RESERVE: u64 = 1_024;

/// The most connections of a machine, where descriptors allow as many.
const MOST: u64 = 512;

/// The open connections of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Links(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    next: u64,
    most: usize,
    closed: bool,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    entrance: usize,
    sockets: Vec<Arc<OwnedFd>>,
}

impl Links {
    /// A table for a process that may open `descriptors` files.
    pub(crate) fn new(descriptors: u64) -> Self {
        let most = (descriptors.saturating_sub(RESERVE) / DESCRIPTORS).clamp(32, MOST);
        Self(Arc::new(Mutex::new(Table {
            next: 0,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            closed: false,
            open: HashMap::new(),
        })))
    }

    /// A place for a connection that came in at `entrance`, which may have `limit` at a time;
    /// `None` if it, or the machine, has as many.
    pub(crate) fn admit(&self, entrance: usize, limit: u32) -> Option<Link> {
        let mut table = lock(&self.0);
        let same = |open: &&Open| open.entrance == entrance;
        if table.closed
            || table.open.len() >= table.most
            || table.open.values().filter(same).count() >= limit as usize
        {
            return None;
        }
        table.next += 1;
        let id = table.next;
        let sockets = Vec::with_capacity(2);
        table.open.insert(id, Open { entrance, sockets });
        Some(Link {
            links: self.clone(),
            id,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.0).open.len()
    }

    /// Whether no more are admitted.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).closed
    }

    /// Cuts every connection and admits no more.
    pub(crate) fn close(&self) {
        let mut table = lock(&self.0);
        table.closed = true;
        for socket in table.open.values().flat_map(|open| &open.sockets) {
            // Fails only where the peer is gone already.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// A place among the connections, free again when dropped.
#[derive(Debug)]
pub(crate) struct Link {
    links: Links,
    id: u64,
}

impl Link {
    /// Takes one end of the connection, so that it can be cut from outside; `None` if it was
    /// cut already.
    pub(crate) fn hold(&self, socket: impl Into<OwnedFd>) -> Option<Arc<OwnedFd>> {
        let socket = Arc::new(socket.into());
        let mut table = lock(&self.links.0);
        if table.closed {
            return None;
        }
        let open = table.open.get_mut(&self.id)?;
        open.sockets.push(Arc::clone(&socket));
        Some(socket)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        lock(&self.links.0).open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn entrances_have_their_limits_and_all_have_one() {
        let links = Links::new(RESERVE + 40 * DESCRIPTORS);
        let mut held: Vec<_> = (0..3).map_while(|_| links.admit(0, 3)).collect();
        assert!(held.len() == 3 && links.admit(0, 3).is_none());
        held.extend((0..100).map_while(|_| links.admit(1, 100)));
        assert_eq!((held.len(), links.count()), (40, 40));
        assert!(links.admit(2, 100).is_none());
        held.remove(0);
        assert!(links.admit(0, 3).is_some());
        drop(held);
        assert_eq!(links.count(), 0);
    }

    #[test]
    fn a_cut_reaches_all_ends_and_later_ones_are_refused() {
        let links = Links::new(4_096);
        let link = links.admit(0, 1).unwrap();
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let _held = link.hold(ours).unwrap();
        links.close();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        assert!(link.hold(UnixStream::pair().unwrap().0).is_none());
        assert!(links.admit(0, 9).is_none());
    }
}
