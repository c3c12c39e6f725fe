//! The device's thread: waits for events and hands each to its owner. Knows no packet and no ring.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use tracing::{debug, warn};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::Device;
use super::{
    Command, Shared, TOKEN_CONTROL, TOKEN_FIRST_KICK, TOKEN_FIRST_SOCKET, TOKEN_FRONTEND,
    TOKEN_HOST_LISTENER, TOKEN_VHOST_LISTENER,
};

/// Events taken per system call.
const BATCH: usize = 64;

type Frontend = BackendReqHandler<Mutex<Device>>;

/// See the module's description.
pub(crate) struct Worker {
    epoll: Arc<OwnedFd>,
    vhost_listener: UnixListener,
    /// Never contended: only this thread takes the lock, here or inside the request handler.
    device: Arc<Mutex<Device>>,
    frontend: Option<Frontend>,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    /// Dropped last: whoever waits for the thread's end watches its other end.
    ending: Option<SyncSender<()>>,
}

enum Next {
    Continue,
    Stop,
}

impl Worker {
    pub(crate) fn new(
        epoll: Arc<OwnedFd>,
        vhost_listener: UnixListener,
        device: Device,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        vhost_listener.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &shared.wake,
            EventData::new_u64(TOKEN_CONTROL),
            EventFlags::IN | EventFlags::ET,
        )?;
        epoll::add(
            &epoll,
            &vhost_listener,
            EventData::new_u64(TOKEN_VHOST_LISTENER),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            vhost_listener,
            device: Arc::new(Mutex::new(device)),
            frontend: None,
            shared,
            commands,
            ending: None,
        })
    }

    /// Serves until told to stop.
    pub(crate) fn run(mut self) {
        let mut more = false;
        let empty = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; BATCH];
        loop {
            let timeout = self.timeout(more);
            let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => 0,
                Err(e) => {
                    // The descriptor is ours and open: only a program error leads here.
                    warn!("vsock: the device ends: {e}");
                    break;
                }
            };
            self.shared
                .counters
                .wakeups
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            for event in &events[..count] {
                if let Next::Stop = self.on_event(event.data.u64(), event.flags) {
                    self.device().detach();
                    return;
                }
            }
            let mut device = self.device();
            device.muxer.on_deadline(Instant::now());
            more = device.process();
        }
        self.device().detach();
    }

    fn timeout(&self, more: bool) -> Option<Timespec> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if more {
            return Some(zero);
        }
        let deadline = self.device().muxer.next_deadline()?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec::try_from(left).unwrap_or(zero))
    }

    fn on_event(&mut self, token: u64, flags: EventFlags) -> Next {
        match token {
            TOKEN_CONTROL => return self.on_command(),
            TOKEN_VHOST_LISTENER => self.attach(),
            TOKEN_FRONTEND => self.on_request(),
            TOKEN_HOST_LISTENER | TOKEN_FIRST_SOCKET.. => {
                let mut device = self.device();
                device.obey();
                device.muxer.on_socket(token, flags);
            }
            // A kick: every wake-up looks at the rings.
            TOKEN_FIRST_KICK.. => {}
        }
        Next::Continue
    }

    fn on_command(&mut self) -> Next {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Sever(done)) => {
                    self.device().obey();
                    // The caller may have given up waiting.
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return Next::Continue,
                Ok(Command::Stop(ending)) => {
                    self.ending = Some(ending);
                    return Next::Stop;
                }
                Err(TryRecvError::Disconnected) => return Next::Stop,
            }
        }
    }

    /// Takes the next VMM unless one is attached; it waits in the listener's backlog meanwhile.
    fn attach(&mut self) {
        if self.frontend.is_some() {
            return;
        }
        let result = self.vhost_listener.accept().and_then(|(stream, _)| {
            // Requests are read whole, with their descriptors: the protocol library expects a blocking stream.
            stream.set_nonblocking(false)?;
            let control = stream.try_clone()?;
            let frontend = Frontend::from_stream(stream, self.device.clone());
            // First: from when its requests are read on it can hold the thread.
            self.shared.hold.attach(Some(control));
            epoll::add(
                &self.epoll,
                borrow(&frontend),
                EventData::new_u64(TOKEN_FRONTEND),
                EventFlags::IN,
            )?;
            Ok(frontend)
        });
        match result {
            Ok(frontend) => self.frontend = Some(frontend),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                self.shared.hold.attach(None);
                warn!("vsock: cannot accept the VMM: {e}");
            }
        }
    }

    fn on_request(&mut self) {
        let Some(frontend) = &mut self.frontend else {
            return;
        };
        match frontend.handle_request() {
            Ok(()) => return,
            Err(Error::Disconnected) => debug!("vsock: the VMM is gone"),
            Err(e) => warn!("vsock: the VMM is detached: {e}"),
        }
        if let Some(frontend) = self.frontend.take()
            && let Err(e) = epoll::delete(&self.epoll, borrow(&frontend))
        {
            warn!("vsock: cannot stop watching the VMM: {e}");
        }
        self.shared.hold.attach(None);
        self.device().detach();
        // One that came early is already in the backlog.
        self.attach();
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn borrow(frontend: &Frontend) -> BorrowedFd<'_> {
    // SAFETY: the handler owns the socket for at least as long as the borrow of the handler.
    unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) }
}
