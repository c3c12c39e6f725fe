//! Which connection a packet or a socket event belongs to: the tables, the host sockets and their limits. Knows no queue.
//!
//! Sockets are watched edge-triggered and their readiness is remembered in the connection, so a socket that is ready
//! while the guest cannot take data costs no wake-up, and nothing has to be re-armed when it can. Room to write is
//! watched only while a backlog exists; watching it again reports the present state, so no edge is missed.

mod handshake;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{Shutdown, shutdown};
use tracing::debug;

use self::handshake::Handshake;
use super::Limits;
use super::connection::{Connection, Key};
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::socket::HostSocket;
use super::{Counters, TOKEN_FIRST_SOCKET, TOKEN_HOST_LISTENER};
use crate::hybrid::port_path;

/// Host ports given to host-initiated connections start here, far from the ports services listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Resets owed to packets of no connection. Beyond it they are dropped: the flood's author times out instead.
const MAX_STRAY_RESETS: usize = 1024;
/// How long to leave the listener alone when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Entry {
    connection: Connection<HostSocket>,
    /// In `ready`.
    queued: bool,
    /// Watched for room to write.
    watching_room: bool,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Muxer {
    epoll: Arc<OwnedFd>,
    guest_cid: u64,
    uds: PathBuf,
    limits: Limits,
    counters: Arc<Counters>,
    listener: Option<UnixListener>,
    accept_again: Option<Instant>,
    severed: bool,

    entries: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    handshakes: HashMap<u64, Handshake>,
    /// First in, first to expire: one list per kind of deadline. Entries that were met are skipped.
    handshake_deadlines: VecDeque<(Instant, u64)>,
    request_deadlines: VecDeque<(Instant, u64)>,
    next_id: u64,
    next_host_port: u32,

    /// Connections with something for the guest, each at most once, served in turn.
    ready: VecDeque<u64>,
    stray_resets: VecDeque<Header>,
}

impl Muxer {
    pub(crate) fn new(
        epoll: Arc<OwnedFd>,
        guest_cid: u64,
        uds: PathBuf,
        listener: UnixListener,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(TOKEN_HOST_LISTENER),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            guest_cid,
            uds,
            limits,
            counters,
            listener: Some(listener),
            accept_again: None,
            severed: false,
            entries: HashMap::new(),
            by_key: HashMap::new(),
            handshakes: HashMap::new(),
            handshake_deadlines: VecDeque::new(),
            request_deadlines: VecDeque::new(),
            next_id: TOKEN_FIRST_SOCKET,
            next_host_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
            stray_resets: VecDeque::new(),
        })
    }

    /// Something waits for the guest.
    pub(crate) fn has_packet(&self) -> bool {
        !self.stray_resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, its payload in `buf`. Connections take turns, a packet each.
    pub(crate) fn next_packet(&mut self, buf: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.stray_resets.pop_front() {
            return Some(reset);
        }
        // Each connection at most once: one that cannot send into this buffer goes back to the end of the line.
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.queued = false;
            let packet = entry.connection.next_packet(buf);
            self.settle(id);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// A packet came from the guest; `data` is its payload, exactly `header.len` bytes.
    pub(crate) fn on_packet(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid != self.guest_cid {
            // Not a sender this device carries packets for; an answer would go nowhere.
            return;
        }
        if header.dst_cid != HOST_CID || header.type_ != TYPE_STREAM {
            self.reset_stray(header);
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        if let Some(&id) = self.by_key.get(&key) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.connection.on_packet(header, data);
            }
            self.settle(id);
        } else if header.op == op::REQUEST {
            self.on_guest_request(key, header);
        } else {
            self.reset_stray(header);
        }
    }

    fn on_guest_request(&mut self, key: Key, header: &Header) {
        let path = port_path(&self.uds, key.host_port);
        if self.severed || !self.make_room() {
            self.reset_stray(header);
            return;
        }
        match HostSocket::connect(&path) {
            Ok(socket) => {
                let buf_alloc = self.limits.buffer_for(self.entries.len());
                let connection =
                    Connection::from_guest(key, self.guest_cid, socket, buf_alloc, header);
                if let Err(e) = self.insert(connection) {
                    debug!("vsock: cannot watch {}: {e}", path.display());
                    self.reset_stray(header);
                }
            }
            Err(e) => {
                debug!("vsock: guest connection to {} refused: {e}", path.display());
                self.reset_stray(header);
            }
        }
    }

    /// A watched socket reported `flags`.
    pub(crate) fn on_socket(&mut self, token: u64, flags: EventFlags) {
        if token == TOKEN_HOST_LISTENER {
            self.accept();
        } else if let Some(entry) = self.entries.get_mut(&token) {
            entry.connection.on_socket(
                flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::ERR),
                flags.contains(EventFlags::OUT),
                flags.contains(EventFlags::HUP),
            );
            self.settle(token);
        } else if self.handshakes.contains_key(&token) {
            self.on_handshake(token);
        }
        // Anything else was closed by an earlier event of the same batch.
    }

    /// When [`Self::on_deadline`] wants to be called, if at all.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        while let Some((_, id)) = self.handshake_deadlines.front()
            && !self.handshakes.contains_key(id)
        {
            self.handshake_deadlines.pop_front();
        }
        while let Some((_, id)) = self.request_deadlines.front()
            && !self.is_requesting(*id)
        {
            self.request_deadlines.pop_front();
        }
        let handshake = self.handshake_deadlines.front().map(|(at, _)| *at);
        let request = self.request_deadlines.front().map(|(at, _)| *at);
        [handshake, request, self.accept_again]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends what has waited too long.
    pub(crate) fn on_deadline(&mut self, now: Instant) {
        while let Some((at, id)) = self.handshake_deadlines.front().copied()
            && at <= now
        {
            self.handshake_deadlines.pop_front();
            self.handshakes.remove(&id);
        }
        while let Some((at, id)) = self.request_deadlines.front().copied()
            && at <= now
        {
            self.request_deadlines.pop_front();
            if self.is_requesting(id) {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.connection.abort();
                }
                self.settle(id);
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.accept();
        }
    }

    /// Closes every host socket. The guest's connections are forgotten; what it sends on them is answered with RST.
    pub(crate) fn drop_connections(&mut self) {
        self.handshakes.clear();
        for entry in self.entries.values_mut() {
            entry.connection.sever();
        }
        self.entries.clear();
        self.by_key.clear();
        self.ready.clear();
        self.stray_resets.clear();
        self.count();
    }

    pub(crate) fn is_severed(&self) -> bool {
        self.severed
    }

    /// Closes every connection and the listener, for good; connected guests are told with RST when they next look.
    pub(crate) fn sever(&mut self) {
        self.severed = true;
        if let Some(listener) = self.listener.take() {
            // A program that another thread starts just now has it open, too, until its exec.
            let _ = shutdown(&listener, Shutdown::Both);
        }
        self.accept_again = None;
        self.handshakes.clear();
        let ids: Vec<u64> = self.entries.keys().copied().collect();
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.connection.abort();
            }
            self.settle(id);
        }
    }

    fn accept(&mut self) {
        loop {
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(e) = self.start_handshake(stream) {
                        debug!("vsock: host connection dropped: {e}");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(e) => {
                    // Out of descriptors or memory: the pending client stays queued, the edge will not come again.
                    debug!("vsock: cannot accept: {e}");
                    self.accept_again = Some(Instant::now() + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn start_handshake(&mut self, stream: std::os::unix::net::UnixStream) -> io::Result<()> {
        if self.handshakes.len() >= self.limits.handshakes {
            return Err(io::Error::other("too many unfinished handshakes"));
        }
        let socket = HostSocket::accepted(stream)?;
        let id = self.new_id();
        self.watch(id, &socket, false)?;
        self.handshakes.insert(id, Handshake::new(socket));
        let deadline = Instant::now() + self.limits.handshake_timeout;
        self.handshake_deadlines.push_back((deadline, id));
        // The line may have come with the connection, before the socket was watched.
        self.on_handshake(id);
        Ok(())
    }

    fn on_handshake(&mut self, id: u64) {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return;
        };
        match handshake.read_line() {
            Ok(None) => {}
            Ok(Some(port)) => {
                if let Some(handshake) = self.handshakes.remove(&id)
                    && self.make_room()
                {
                    self.request(id, handshake.into_socket(), port);
                }
            }
            Err(e) => {
                debug!("vsock: handshake failed: {e}");
                self.handshakes.remove(&id);
            }
        }
    }

    /// The socket keeps its token, so it stays watched.
    fn request(&mut self, id: u64, socket: HostSocket, guest_port: u32) {
        let key = loop {
            let host_port = self.next_host_port;
            self.next_host_port = FIRST_HOST_PORT | (host_port + 1) & (FIRST_HOST_PORT - 1);
            let key = Key {
                host_port,
                guest_port,
            };
            // Ends: there are 2^30 ports and far fewer connections.
            if !self.by_key.contains_key(&key) {
                break key;
            }
        };
        let buf_alloc = self.limits.buffer_for(self.entries.len());
        let connection = Connection::from_host(key, self.guest_cid, socket, buf_alloc);
        let deadline = Instant::now() + self.limits.connect_timeout;
        self.request_deadlines.push_back((deadline, id));
        self.enter(id, connection);
    }

    fn insert(&mut self, connection: Connection<HostSocket>) -> io::Result<()> {
        let id = self.new_id();
        if let Some(socket) = connection.stream() {
            self.watch(id, socket, false)?;
        }
        self.enter(id, connection);
        Ok(())
    }

    /// Takes a connection, whose socket is watched by this token, into the tables.
    fn enter(&mut self, id: u64, connection: Connection<HostSocket>) {
        self.by_key.insert(connection.key(), id);
        let entry = Entry {
            connection,
            queued: false,
            watching_room: false,
        };
        self.entries.insert(id, entry);
        self.settle(id);
    }

    /// Room for one more connection, if need be by forgetting one the guest has not bothered to confirm the end of.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < self.limits.connections {
            return true;
        }
        let ended = self
            .entries
            .iter()
            .find(|(_, e)| e.connection.awaits_only_guest_reset());
        let Some((&id, entry)) = ended else {
            debug!("vsock: connection limit reached");
            return false;
        };
        self.by_key.remove(&entry.connection.key());
        self.remove(id);
        true
    }

    fn remove(&mut self, id: u64) {
        // A guest that takes no packets could otherwise grow the line by opening and resetting.
        if self.entries.remove(&id).is_some_and(|e| e.queued) {
            self.ready.retain(|waiting| *waiting != id);
        }
        self.count();
    }

    /// Brings the tables and the socket's registration in line with the connection's state. Called after every change.
    fn settle(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let connection = &entry.connection;
        if connection.is_forgotten_by_guest() && self.by_key.get(&connection.key()) == Some(&id) {
            self.by_key.remove(&connection.key());
        }
        if connection.is_done() {
            self.remove(id);
            return;
        }
        if connection.has_packet() && !entry.queued {
            entry.queued = true;
            self.ready.push_back(id);
        }
        let wants_room = connection.wants_writable();
        if wants_room != entry.watching_room
            && let Some(socket) = connection.stream()
        {
            let flags = interest(wants_room);
            match epoll::modify(&self.epoll, socket, EventData::new_u64(id), flags) {
                Ok(()) => entry.watching_room = wants_room,
                Err(e) => {
                    // Without events the connection would hang: end it where both sides can see it.
                    debug!("vsock: cannot watch a socket: {e}");
                    entry.connection.abort();
                    if !entry.queued && entry.connection.has_packet() {
                        entry.queued = true;
                        self.ready.push_back(id);
                    }
                }
            }
        }
        self.count();
    }

    fn watch(&self, id: u64, socket: &HostSocket, room: bool) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            socket.as_fd(),
            EventData::new_u64(id),
            interest(room),
        )?)
    }

    fn reset_stray(&mut self, packet: &Header) {
        // A RST is never answered (virtio 1.2, 5.10.6.4.2), and resets are bounded.
        if packet.op != op::RST && self.stray_resets.len() < MAX_STRAY_RESETS {
            self.stray_resets.push_back(Header::reset_for(packet));
        }
    }

    fn is_requesting(&self, id: u64) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|e| e.connection.is_requesting())
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn count(&self) {
        self.counters.set_connections(self.entries.len());
    }
}

fn interest(room: bool) -> EventFlags {
    let base = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if room { base | EventFlags::OUT } else { base }
}

#[cfg(test)]
mod tests;
