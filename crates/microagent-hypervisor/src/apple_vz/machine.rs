//! A machine, as the supervisor sees it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use microagent_protocol::ProcessIdentity;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{
    bridge::{self, Bridge, Channel, Guest},
    configuration::{self, ConsoleEnds},
    kernel,
    life::{End, Life},
    plan::{Plan, Seen},
    verdict::remedy_for,
    virtual_machine::VirtualMachine,
};
use crate::{
    Error, Exit, Machine, MachineSpec, SerialPort,
    console::{Listeners, Record, RotatingLog},
    flat::with_flat_disks,
    identity::identity_of,
};

/// What errors call the monitor.
const NAME: &str = "Virtualization.framework";
/// How long a machine may take to stop before its objects are let go.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often it is asked to, where it could not just then.
const STOP_AGAIN: Duration = Duration::from_millis(100);

/// A machine in this process.
pub struct AppleMachine {
    identity: ProcessIdentity,
    life: Arc<Life>,
    machine: VirtualMachine,
    bridge: Bridge,
    vsock: PathBuf,
    console: UnixStream,
    listeners: Arc<Listeners>,
    keeper: Option<JoinHandle<()>>,
}

fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let context = context.into();
    move |source| Error::Io { context, source }
}

fn start_error(reason: String) -> Error {
    let remedy = remedy_for(&reason).map(|remedy| format!("; {remedy}"));
    Error::VmmStart {
        program: NAME.into(),
        reason: format!("{reason}{}", remedy.unwrap_or_default()),
    }
}

impl AppleMachine {
    pub(super) fn launch(spec: &MachineSpec, limit: Duration) -> Result<Self, Error> {
        crate::machine::check(spec)?;
        let spec = &with_flat_disks(spec, "Apple's framework")?;
        let plan = Plan::of(spec, &configuration::limits(), &look(spec)?)?;
        tracing::debug!(?plan, "launching a machine of {NAME}");

        let identity =
            identity_of(std::process::id()).map_err(io_error("tell which process this is"))?;
        let life = Life::new().map(Arc::new).map_err(io_error("make a pipe"))?;
        let log = RotatingLog::open(&spec.console).map_err(io_error(format!(
            "open the console log {}",
            spec.console.log.display()
        )))?;
        let (console, ends) =
            console_ends().map_err(io_error("make a socket pair for the serial console"))?;
        let vsock = spec.vsock.uds.clone();
        let listening = || format!("listen at {}", vsock.display());
        let guest = Arc::<Later>::default();
        let ports = bridge::ports(&vsock).map_err(io_error(listening()))?;
        let bridge = Bridge::start(&vsock, guest.clone()).map_err(io_error(listening()))?;
        let take = Box::new(bridge.taker());
        let machine = VirtualMachine::make(&plan, ends, &life, ports, take).map_err(start_error)?;
        guest.set(machine.guest());

        let listeners = Arc::<Listeners>::default();
        let keeper = keep_console(&console, log, &listeners, &life)
            .map_err(io_error("start the thread that keeps the console"))?;
        // From here on dropping it ends everything that was begun.
        let this = Self {
            identity,
            life,
            machine,
            bridge,
            vsock,
            console,
            listeners,
            keeper: Some(keeper),
        };
        match this.machine.start(limit) {
            Ok(()) => Ok(this),
            Err(Some(words)) => Err(start_error(words)),
            Err(None) => Err(Error::Timeout {
                what: format!("the start of a machine of {NAME}"),
                limit,
            }),
        }
    }

    fn end(&self) {
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if self.life.how().is_some() {
                return;
            }
            self.machine.stop();
            if self.life.wait(STOP_AGAIN).is_some() {
                return;
            }
        }
        tracing::error!("the machine does not stop; it is let go");
        self.machine.give_up();
        if self.life.wait(STOP_LIMIT).is_none() {
            // Its queue is stuck. The machine ends with this process, at the latest.
            self.life
                .end(End::Failed("it neither stops nor answers".to_owned()));
        }
    }
}

impl Machine for AppleMachine {
    /// This process: the machine ends with it.
    fn vmm(&self) -> ProcessIdentity {
        self.identity.clone()
    }

    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.life.exit_fd()
    }

    fn wait(&self, limit: Duration) -> Result<Option<Exit>, Error> {
        Ok(self.life.wait(limit))
    }

    fn ended_by_guest(&self) -> bool {
        self.life.how() == Some(End::ByGuest)
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    fn console(&self) -> Result<SerialPort, Error> {
        self.listeners
            .attach(&self.console, self.life.how().is_some())
    }

    fn pause(&self) -> Result<(), Error> {
        self.machine.pause().map_err(|reason| Error::Control {
            action: "freeze its vCPUs",
            reason,
        })
    }

    fn resume(&self) -> Result<(), Error> {
        self.machine.resume().map_err(|reason| Error::Control {
            action: "thaw its vCPUs",
            reason,
        })
    }

    /// There is no network card; the vsock's connections are ours to cut.
    fn sever(&self) -> Result<(), Error> {
        self.bridge.sever();
        self.machine.close_ports();
        Ok(())
    }

    fn words(&self) -> String {
        match self.life.how() {
            Some(End::Failed(words)) => words,
            _ => String::new(),
        }
    }

    fn kill(&self) -> Result<(), Error> {
        self.end();
        Ok(())
    }
}

impl Drop for AppleMachine {
    fn drop(&mut self) {
        self.end();
        self.bridge.sever();
        // It sees the end of this life.
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the thread that kept the console panicked");
        }
    }
}

/// The guest's side, once there is one: its socket is there before.
#[derive(Default)]
struct Later(OnceLock<Box<dyn Guest>>);

impl Later {
    fn set(&self, guest: impl Guest + 'static) {
        // Set once, by whoever made it.
        let _ = self.0.set(Box::new(guest));
    }
}

impl Guest for Later {
    fn connect(&self, port: u32, limit: Duration) -> io::Result<Channel> {
        match self.0.get() {
            Some(guest) => guest.connect(port, limit),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn look(spec: &MachineSpec) -> Result<Seen, Error> {
    let read = |path: &Path| {
        let mut head = Vec::with_capacity(kernel::HEAD);
        File::open(path)?
            .take(kernel::HEAD as u64)
            .read_to_end(&mut head)?;
        Ok(head)
    };
    let kernel = read(&spec.kernel).map_err(io_error(format!(
        "read the kernel {}",
        spec.kernel.display()
    )))?;
    let length = |path: &PathBuf| {
        fs::metadata(path)
            .map(|metadata| metadata.len())
            .map_err(io_error(format!("look at the disk {}", path.display())))
    };
    let disks = spec.disks.iter().map(|disk| length(&disk.path)).collect();
    Ok(Seen {
        kernel,
        disks: Result::from_iter::<Vec<_>>(disks)?,
    })
}

/// Our end of the console, and the framework's two.
fn console_ends() -> io::Result<(UnixStream, ConsoleEnds)> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_nosigpipe(&ours, true)?;
    let input = OwnedFd::from(theirs.try_clone()?);
    let output = OwnedFd::from(theirs);
    Ok((ours, ConsoleEnds { input, output }))
}

/// Carries the guest's output to the log and to who listens, until the machine has ended and said all.
fn keep_console(
    console: &UnixStream,
    log: RotatingLog,
    listeners: &Arc<Listeners>,
    life: &Arc<Life>,
) -> io::Result<JoinHandle<()>> {
    let console = console.try_clone()?;
    let (listeners, life) = (Arc::clone(listeners), Arc::clone(life));
    Builder::new().name("console".to_owned()).spawn(move || {
        let mut record = Record::new(log, &listeners);
        let mut buffer = vec![0; 32 * 1024];
        while let Some(count) = next_output(&console, &life, &mut buffer) {
            record.take(&buffer[..count]);
        }
        record.end();
        listeners.close();
    })
}

/// Waits for output; `None` once there will be no more.
fn next_output(mut console: &UnixStream, life: &Life, buffer: &mut [u8]) -> Option<usize> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(console.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(life.exit_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!("the console cannot be watched: {error}");
                return None;
            }
        }
        if fds[0].revents().is_empty() {
            // The machine has ended, and nothing is left to read.
            return None;
        }
        match console.read(buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!("the console cannot be read: {error}");
                return None;
            }
        }
    }
}
