//! The framework's vsock as the hybrid Unix socket that every other driver shows.
//!
//! The framework hands out a descriptor for each connection. Here each is joined to a Unix socket: one of the
//! host that said `CONNECT <port>`, or one to `<uds>_<port>` for a connection of the guest. Knows nothing of the
//! framework.

use std::{
    collections::HashMap,
    fs,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use microagent_relay::join;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{Shutdown, shutdown},
};

use crate::hybrid;

/// The most connections at a time; a supervisor has some hundreds.
const MOST_LINKS: usize = 1024;
/// The most ports that a guest may find open.
const MOST_PORTS: usize = 64;
/// How long a host program may take to name its port.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How long the guest may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may take to be gone once they were cut.
const END_LIMIT: Duration = Duration::from_secs(2);
/// A thread that joins two sockets holds its buffers in the heap.
const STACK: usize = 128 * 1024;

/// One vsock connection.
pub(super) struct Channel {
    /// Its bytes; a descriptor of ours.
    pub(super) stream: OwnedFd,
    /// What has to live as long as the bytes are used.
    pub(super) keep: Box<dyn Send>,
}

/// The guest's side.
pub(super) trait Guest: Send + Sync {
    /// Connects to a port of the guest.
    fn connect(&self, port: u32, limit: Duration) -> io::Result<Channel>;
}

/// Two ends that are, or will be, joined.
struct Link {
    host: UnixStream,
    guest: OnceLock<OwnedFd>,
}

impl Link {
    fn cut(&self) {
        // One that is gone already is cut.
        let _ = shutdown(&self.host, Shutdown::Both);
        if let Some(guest) = self.guest.get() {
            let _ = shutdown(guest, Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct Open {
    severed: bool,
    next: u64,
    links: HashMap<u64, Arc<Link>>,
}

struct Inner {
    uds: PathBuf,
    open: Mutex<Open>,
    fewer: Condvar,
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; given back when dropped.
struct Place {
    inner: Arc<Inner>,
    number: u64,
    link: Arc<Link>,
}

impl Place {
    fn take(inner: &Arc<Inner>, host: UnixStream) -> io::Result<Self> {
        let mut open = inner.open();
        if open.severed {
            return Err(io::Error::other("the machine is cut off"));
        }
        if open.links.len() >= MOST_LINKS {
            return Err(io::Error::other("the machine has too many connections"));
        }
        let link = Arc::new(Link {
            host,
            guest: OnceLock::new(),
        });
        let number = open.next;
        open.next += 1;
        open.links.insert(number, Arc::clone(&link));
        Ok(Self {
            inner: Arc::clone(inner),
            number,
            link,
        })
    }

    /// Joins the two until both directions are over, or it is cut.
    fn carry(&self, channel: Channel) -> io::Result<()> {
        let Channel { stream, keep } = channel;
        let guest = self.link.guest.get_or_init(|| stream);
        // Whoever severs after this finds both ends; who did before found one.
        let done = if self.inner.open().severed {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            join(&self.link.host, guest)
        };
        self.link.cut();
        drop(keep);
        done
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.open().links.remove(&self.number);
        self.inner.fewer.notify_all();
    }
}

/// Carries connections until it is dropped.
pub(super) struct Bridge {
    inner: Arc<Inner>,
    door: Mutex<Option<(PipeWriter, JoinHandle<()>)>>,
}

impl Bridge {
    /// Listens at `uds`.
    pub(super) fn start(uds: &Path, guest: Arc<dyn Guest>) -> io::Result<Self> {
        hybrid::check_path(uds, true)?;
        remove(uds);
        let listener = hybrid::listen_private(uds)?;
        listener.set_nonblocking(true)?;
        let (stop, stopper) = io::pipe()?;
        let inner = Arc::new(Inner {
            uds: uds.to_owned(),
            open: Mutex::default(),
            fewer: Condvar::new(),
        });
        let served = Arc::clone(&inner);
        let serving = Builder::new()
            .name("vsock-door".to_owned())
            .stack_size(STACK)
            .spawn(move || serve(&listener, &stop, &served, &guest))?;
        Ok(Self {
            inner,
            door: Mutex::new(Some((stopper, serving))),
        })
    }

    /// Takes a connection that the guest made to a port, and says whether it is carried. Waits for nothing, and does
    /// not keep the bridge alive.
    pub(super) fn taker(&self) -> impl Fn(u32, Channel) -> bool + Send + Sync + 'static {
        let inner = Arc::downgrade(&self.inner);
        move |port, channel| {
            inner
                .upgrade()
                .is_some_and(|inner| arrived(&inner, port, channel))
        }
    }

    /// Cuts everything, and takes no more.
    pub(super) fn sever(&self) {
        let links: Vec<_> = {
            let mut open = self.inner.open();
            open.severed = true;
            open.links.values().cloned().collect()
        };
        for link in links {
            link.cut();
        }
        let door = self
            .door
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((stopper, serving)) = door {
            drop(stopper);
            if serving.join().is_err() {
                tracing::error!("the thread that serves the vsock's socket panicked");
            }
            remove(&self.inner.uds);
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.sever();
        let deadline = Instant::now() + END_LIMIT;
        let mut open = self.inner.open();
        while !open.links.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("{} vsock connections do not end", open.links.len());
                return;
            }
            open = self
                .inner
                .fewer
                .wait_timeout(open, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The ports at which somebody listens for the guest: `<uds>_<port>`, as they are now.
pub(super) fn ports(uds: &Path) -> io::Result<Vec<u32>> {
    let (Some(folder), Some(name)) = (uds.parent(), uds.file_name()) else {
        return Ok(Vec::new());
    };
    let mut ports = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        let digits = file
            .as_encoded_bytes()
            .strip_prefix(name.as_encoded_bytes())
            .and_then(|rest| rest.strip_prefix(b"_"));
        if let Some(port) = digits.and_then(port_number) {
            ports.push(port);
        }
    }
    ports.sort_unstable();
    ports.truncate(MOST_PORTS);
    Ok(ports)
}

/// As [`hybrid::port_path`] writes it, and no other way.
fn port_number(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    let port: u32 = digits.parse().ok()?;
    (port.to_string() == digits).then_some(port)
}

fn remove(socket: &Path) {
    if let Err(error) = fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", socket.display());
    }
}

/// Accepts until the stopper is dropped.
fn serve(listener: &UnixListener, stop: &PipeReader, inner: &Arc<Inner>, guest: &Arc<dyn Guest>) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!("the vsock's socket cannot be watched: {error}");
                return;
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let host = match listener.accept() {
            Ok((host, _)) => host,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Without descriptors it would be asked again at once.
                tracing::warn!("a vsock connection cannot be accepted: {error}");
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        let (inner, guest) = (Arc::clone(inner), Arc::clone(guest));
        let spawned = Builder::new()
            .name("vsock-out".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = outgoing(&inner, &*guest, host) {
                    tracing::debug!("a connection to the guest ended: {error}");
                }
            });
        if let Err(error) = spawned {
            // Its socket is closed, which is what its other end learns.
            tracing::warn!("a vsock connection gets no thread: {error}");
        }
    }
}

/// A host program's connection to the guest.
fn outgoing(inner: &Arc<Inner>, guest: &dyn Guest, host: UnixStream) -> io::Result<()> {
    // A system may hand on the listener's mode.
    host.set_nonblocking(false)?;
    let place = Place::take(inner, host)?;
    let mut host = &place.link.host;
    let port = asked_port(host, Instant::now() + HANDSHAKE_LIMIT)?;
    let channel = guest.connect(port, CONNECT_LIMIT)?;
    host.set_read_timeout(None)?;
    // The number that Firecracker gives is one of its own; nobody reads it.
    host.write_all(format!("OK {port}\n").as_bytes())?;
    place.carry(channel)
}

/// Reads `CONNECT <port>\n`, and no byte more: what follows is the guest's.
fn asked_port(mut host: &UnixStream, deadline: Instant) -> io::Result<u32> {
    let mut line = Vec::with_capacity(hybrid::MAX_CONNECT);
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "expected CONNECT <port>");
    while line.last() != Some(&b'\n') {
        if line.len() >= hybrid::MAX_CONNECT {
            return Err(invalid());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        host.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match host.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    line.strip_suffix(b"\n")
        .and_then(hybrid::asked_port)
        .ok_or_else(invalid)
}

fn arrived(inner: &Arc<Inner>, port: u32, channel: Channel) -> bool {
    {
        let open = inner.open();
        if open.severed || open.links.len() >= MOST_LINKS {
            return false;
        }
    }
    let inner = Arc::clone(inner);
    let spawned = Builder::new()
        .name("vsock-in".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let carried = UnixStream::connect(hybrid::port_path(&inner.uds, port))
                .and_then(|host| Place::take(&inner, host))
                .and_then(|place| place.carry(channel));
            if let Err(error) = carried {
                tracing::debug!("a connection of the guest to port {port} ended: {error}");
            }
        });
    if let Err(error) = &spawned {
        tracing::warn!("a connection of the guest gets no thread: {error}");
    }
    spawned.is_ok()
}

#[cfg(test)]
mod tests;
