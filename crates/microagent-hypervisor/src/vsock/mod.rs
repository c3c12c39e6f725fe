//! A virtio-vsock device in this process, for QEMU over vhost-user, shown to the host as Firecracker's hybrid socket.
//!
//! A host program connects to `<uds>`, writes `CONNECT <port>\n`, reads `OK <host port>\n` and then talks to the
//! guest's port; a guest's connection to (CID 2, port P) arrives at the Unix socket `<uds>_<P>`, and is reset when
//! nobody listens there. [`connect`] and [`listen`] are those two for host programs.
//!
//! One thread per device does everything: vhost-user requests, rings, sockets. It sleeps in `epoll_wait` without a
//! timeout unless a handshake or a connection attempt is pending. Layers, each ignorant of the ones above it:
//! `packet` (bytes), `connection` (one stream's state machine), `muxer` (tables and sockets), `device` (rings and
//! vhost-user), `worker` (the thread). The guest is hostile throughout; the VMM is not trusted with our liveness.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use microagent_hypervisor::vsock::{VsockConfig, VsockDevice, connect, listen};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let uds = "/run/user/0/microagent/5f0c/vsock".as_ref();
//! let hello = listen(uds, 1024)?;
//! let device = VsockDevice::spawn(VsockConfig::new("/run/user/0/microagent/5f0c/vhost", uds, 3))?;
//! // Start QEMU: -object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem
//! //   -chardev socket,id=vs,path=/run/…/vhost -device vhost-user-vsock-device,chardev=vs
//! let (agent, _) = hello.accept()?;
//! let stream = connect(uds, 1025, Instant::now() + Duration::from_secs(5))?;
//! # drop((agent, stream));
//! device.shutdown();
//! # Ok(())
//! # }
//! ```

mod connection;
mod device;
mod hold;
mod muxer;
mod packet;
mod socket;
mod worker;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::hybrid;
pub use crate::hybrid::{connect, listen};
use hold::Hold;

// What an epoll event is about.
const TOKEN_CONTROL: u64 = 0;
const TOKEN_VHOST_LISTENER: u64 = 1;
const TOKEN_FRONTEND: u64 = 2;
const TOKEN_HOST_LISTENER: u64 = 3;
const TOKEN_FIRST_KICK: u64 = 4;
const TOKEN_FIRST_SOCKET: u64 = 16;

/// How long a command may take before the thread is freed from what the VMM may hold it by.
const COMMAND_PATIENCE: Duration = Duration::from_millis(500);
/// How long after each time it was freed it is looked whether that helped.
const FREEING_PAUSE: Duration = Duration::from_millis(20);
/// How long it is freed again and again before it is left where it is. A dead VMM takes one time.
const FREEING_LIMIT: Duration = Duration::from_secs(5);

/// What a device is to be.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// Where QEMU connects (`-chardev socket,path=…`). Must not exist yet; at most 107 bytes.
    pub vhost_socket: PathBuf,
    /// The hybrid socket. Must not exist yet; at most 96 bytes, so that `_<port>` fits behind it.
    pub uds: PathBuf,
    /// The guest's context id, 3 or more and below 2^32.
    pub guest_cid: u64,
    /// Bounds on what guest and host programs can make the device hold.
    pub limits: Limits,
}

impl VsockConfig {
    /// A device with the default limits.
    pub fn new(vhost_socket: impl Into<PathBuf>, uds: impl Into<PathBuf>, guest_cid: u64) -> Self {
        Self {
            vhost_socket: vhost_socket.into(),
            uds: uds.into(),
            guest_cid,
            limits: Limits::default(),
        }
    }
}

/// Bounds of one device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, both directions together; further ones are refused.
    pub connections: usize,
    /// Host programs at once that have connected but not yet said `CONNECT`; further ones are closed.
    pub handshakes: usize,
    /// Most bytes the guest may have under way to a host program that does not read. Granted in full to the first
    /// connections, less to later ones, so that all of them together stay bounded: with the defaults 28 MiB.
    pub buffer: u32,
    /// How long a host program may take to say `CONNECT`.
    pub handshake_timeout: Duration,
    /// How long the guest may take to answer a connection.
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshakes: 128,
            buffer: 256 * 1024,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The credit for a connection made when `open` others exist.
    fn buffer_for(&self, open: usize) -> u32 {
        let share = match open {
            0..32 => 1,
            32..256 => 8,
            _ => 16,
        };
        (self.buffer / share).max(4096)
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The CID is reserved or too large.
    #[error("{0} cannot be a guest's vsock CID: use a number from 3 to 4294967294")]
    Cid(u64),
    /// A socket could not be made.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread, an epoll instance or an event counter could not be made.
    #[error("cannot start the vsock device: {0}")]
    Start(#[source] io::Error),
}

/// A running device. Dropping it ends it, as [`VsockDevice::shutdown`] does.
#[derive(Debug)]
pub struct VsockDevice {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    _files: [SocketFile; 2],
}

/// What can be seen of a running device from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockStats {
    /// Connections now in the table.
    pub connections: usize,
    /// Times the device's thread woke since it started. An idle guest leaves it unchanged.
    pub wakeups: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicUsize,
    wakeups: AtomicU64,
}

impl Counters {
    fn set_connections(&self, count: usize) {
        self.connections.store(count, Ordering::Relaxed);
    }
}

enum Command {
    Sever(SyncSender<()>),
    /// What it carries goes with the thread.
    Stop(SyncSender<()>),
}

/// What the caller's threads and the device's thread both hold.
#[derive(Debug)]
struct Shared {
    wake: OwnedFd,
    counters: Arc<Counters>,
    hold: Arc<Hold>,
}

/// Unlinks a socket file we made.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl VsockDevice {
    /// Makes the sockets and starts the thread. When this returns, QEMU and host programs can connect.
    ///
    /// The device serves one VMM at a time; when that ends, all connections end and the next VMM is awaited.
    ///
    /// # Errors
    ///
    /// When a socket cannot be made (its path exists, is too long, or its directory is missing), the CID is
    /// reserved, or the process lacks threads or descriptors.
    pub fn spawn(config: VsockConfig) -> Result<Self, VsockError> {
        let VsockConfig {
            vhost_socket,
            uds,
            guest_cid,
            limits,
        } = config;
        if guest_cid < 3 || guest_cid >= u64::from(u32::MAX) {
            return Err(VsockError::Cid(guest_cid));
        }
        let listen = |path: &PathBuf, suffixed| {
            hybrid::check_path(path, suffixed)
                .and_then(|()| hybrid::listen_private(path))
                .map(|listener| (listener, SocketFile(path.clone())))
                .map_err(|source| VsockError::Listen {
                    path: path.clone(),
                    source,
                })
        };
        let (vhost_listener, vhost_file) = listen(&vhost_socket, false)?;
        let (host_listener, host_file) = listen(&uds, true)?;

        let start = |e: rustix::io::Errno| VsockError::Start(e.into());
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(start)?);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(start)?;
        let shared = Arc::new(Shared {
            wake,
            counters: Arc::default(),
            hold: Arc::default(),
        });
        let muxer = muxer::Muxer::new(
            epoll.clone(),
            guest_cid,
            uds,
            host_listener,
            limits,
            shared.counters.clone(),
        )
        .map_err(VsockError::Start)?;
        let device = device::Device::new(epoll.clone(), guest_cid, muxer, shared.hold.clone())
            .map_err(|e| VsockError::Start(io::Error::other(e)))?;
        let (commands, receiver) = channel();
        let worker = worker::Worker::new(epoll, vhost_listener, device, shared.clone(), receiver)
            .map_err(VsockError::Start)?;
        let thread = std::thread::Builder::new()
            .name("vsock".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || worker.run())
            .map_err(VsockError::Start)?;
        Ok(Self {
            shared,
            commands,
            thread: Some(thread),
            _files: [vhost_file, host_file],
        })
    }

    /// Closes every connection at once and refuses new ones for good, in both directions. The VMM stays attached.
    ///
    /// On return no byte passes any more. For quarantine: works whatever the guest and the VMM are doing.
    pub fn sever(&self) {
        self.shared.hold.sever();
        let (done, severed) = sync_channel(1);
        self.command(Command::Sever(done));
        if severed.recv_timeout(COMMAND_PATIENCE) == Err(RecvTimeoutError::Timeout)
            && !self.free_until(&severed)
        {
            tracing::error!("the VMM holds the vsock thread, which moves nothing any more");
        }
    }

    /// Frees the thread until something is said over `told`, or its other end is gone; false if neither comes.
    fn free_until(&self, told: &Receiver<()>) -> bool {
        let deadline = Instant::now() + FREEING_LIMIT;
        while Instant::now() < deadline {
            self.shared.hold.free();
            if told.recv_timeout(FREEING_PAUSE) != Err(RecvTimeoutError::Timeout) {
                return true;
            }
        }
        false
    }

    /// What the device is doing.
    pub fn stats(&self) -> VsockStats {
        let counters = &self.shared.counters;
        VsockStats {
            connections: counters.connections.load(Ordering::Relaxed),
            wakeups: counters.wakeups.load(Ordering::Relaxed),
        }
    }

    /// Ends the device: closes every connection, detaches the VMM, joins the thread and unlinks both sockets.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            let (ending, ended) = sync_channel(1);
            self.command(Command::Stop(ending));
            if !self.free_until(&ended) {
                // It holds sockets and memory until this process ends; waiting for ever would hold all of it.
                tracing::error!("the VMM holds the vsock thread, which is left behind");
            } else if thread.join().is_err() {
                tracing::error!("the vsock thread panicked");
            }
        }
    }

    fn command(&self, command: Command) {
        // Fails only when the thread has ended, and then there is nothing left to command.
        let _ = self.commands.send(command);
        // Fails only when the counter is full, and then the thread is already being woken.
        let _ = rustix::io::write(self.shared.wake.as_fd(), &1u64.to_ne_bytes());
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use tempfile::TempDir;

    fn spawn(dir: &TempDir) -> VsockDevice {
        let at = |name| dir.path().join(name);
        VsockDevice::spawn(VsockConfig::new(at("vhost"), at("v"), 3)).unwrap()
    }

    #[test]
    fn sockets_are_private_and_go_with_the_device() {
        let dir = TempDir::new().unwrap();
        let device = spawn(&dir);
        for name in ["vhost", "v"] {
            let mode = std::fs::metadata(dir.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        device.shutdown();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(spawn(&dir));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        let dir = TempDir::new().unwrap();
        let running = spawn(&dir);
        let at = |name: &str| dir.path().join(name);
        let taken = VsockDevice::spawn(VsockConfig::new(at("vhost"), at("other"), 3)).unwrap_err();
        assert!(taken.to_string().contains("vhost"), "{taken}");
        assert!(
            at("vhost").exists(),
            "another device's socket is left alone"
        );
        let long = at(&"x".repeat(97));
        let error = VsockDevice::spawn(VsockConfig::new(at("a"), long, 3)).unwrap_err();
        assert!(error.to_string().contains("shorter directory"), "{error}");
        assert!(!at("a").exists(), "what was made before is taken back");
        for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
            let error = VsockDevice::spawn(VsockConfig::new(at("a"), at("b"), cid)).unwrap_err();
            assert!(matches!(error, VsockError::Cid(_)), "{error}");
        }
        drop(running);
    }

    #[test]
    fn a_vmm_that_stops_in_the_middle_of_a_request_holds_up_nothing() {
        let dir = TempDir::new().unwrap();
        let device = spawn(&dir);
        let mut vmm = UnixStream::connect(dir.path().join("vhost")).unwrap();
        vmm.write_all(&[1, 0, 0]).unwrap();
        let mut client = UnixStream::connect(dir.path().join("v")).unwrap();
        let began = Instant::now();
        device.sever();
        // An end or a reset: it may not have been accepted yet.
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "severed");
        assert!(UnixStream::connect(dir.path().join("v")).is_err());

        let mut vmm = UnixStream::connect(dir.path().join("vhost")).unwrap();
        vmm.write_all(&[1, 0, 0]).unwrap();
        device.shutdown();
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_vmm_that_talks_nonsense_is_detached_and_the_next_one_served() {
        let dir = TempDir::new().unwrap();
        let device = spawn(&dir);
        for nonsense in [
            &[0xff; 64][..],
            &[0; 12],
            &[9, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0],
        ] {
            let mut vmm = UnixStream::connect(dir.path().join("vhost")).unwrap();
            vmm.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            vmm.write_all(nonsense).unwrap();
            vmm.shutdown(std::net::Shutdown::Write).unwrap();
            // An end or a reset, for lack of interest in the rest.
            assert!(!matches!(vmm.read(&mut [0; 64]), Ok(1..)), "{nonsense:?}");
        }
        // GET_FEATURES, answered.
        let mut vmm = UnixStream::connect(dir.path().join("vhost")).unwrap();
        vmm.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            .unwrap();
        vmm.read_exact(&mut [0; 20]).unwrap();
        device.shutdown();
    }
}
