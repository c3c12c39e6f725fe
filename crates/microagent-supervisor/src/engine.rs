//! The one thread that runs a machine: it feeds the lifecycle and does what comes out.
//!
//! Everything that happens anywhere in the supervisor arrives here as a
//! [`Message`], one after the other; nothing else touches the machine.

mod clients;
mod end;
mod machine;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use microagent_hypervisor::{
    ConsoleSpec, DiskForm, DiskSpec, Exit, Hypervisor, Machine, MachineSpec, SerialPort, VsockSpec,
};
use microagent_protocol::{
    EndCause, ExecRole, LaunchSpec, NetworkProvider, ProcessIdentity, PublishedPort, State,
    Timestamp,
    guest::{
        BASE_SERIAL, DiskMount, GUEST_CID, GuestIpv6, GuestNetwork, HELLO_PORT, HostMessage,
        SCRATCH_SERIAL,
    },
    supervisor::{ErrorKind, ErrorReport, EventKind, Status},
};

use crate::{
    Error,
    console::Console,
    crew::{Crew, lock},
    events::Journal,
    lifecycle::{Action, ConsoleVerdict, Input, Lifecycle, Timer},
    link::{Introduction, Link},
    readiness,
    result::Capture,
    session::Sessions,
    wiring::Wiring,
};

/// The machine's own directory in the runtime directory. Some VMMs may make and remove files in it: nothing that
/// a VMM must not reach, as the control socket, may lie there.
pub(crate) const MACHINE_DIRECTORY: &str = "vmm";

/// The vsock's Unix socket in the machine's directory.
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";

/// A VMM's end is waited for without a limit: a supervisor has nothing to wake it when nothing happens.
const FOREVER: Duration = Duration::MAX;

/// How long a dead VMM's guest may still be heard.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(300);

/// A control command, as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Inspect,
    Halt { grace_ms: u64 },
    Stop { grace_ms: u64 },
    Kill,
    Condemn { reason: String },
    Pause,
    Resume,
    Quarantine,
    Rebind { ports: Vec<PublishedPort> },
}

/// Where an answer goes.
pub(crate) type Reply<T> = Sender<Result<T, ErrorReport>>;

/// What the rest of the supervisor tells the engine.
#[derive(Debug)]
pub(crate) enum Message {
    /// Something happened to the machine of this attempt.
    Machine { attempt: u32, input: Input },
    /// A client asks.
    Ask { ask: Ask, reply: Reply<Status> },
    /// A client wants to run something: tell it where, once the guest is ready.
    Exec {
        role: ExecRole,
        reply: Reply<PathBuf>,
    },
    /// A client attaches to the serial console.
    Console { reply: Reply<SerialPort> },
    /// The workload runs, and this keeps its output.
    WorkloadStarted(Arc<Mutex<Capture>>),
    /// The workload will not run after all: the guest could not be asked to.
    WorkloadAbandoned,
    /// The workload never ran, and this says why.
    WorkloadFailed(Arc<Mutex<Capture>>),
    /// Something happened that is no machine's.
    Happened(Input),
}

/// What an engine works on.
pub(crate) struct Setup {
    pub(crate) spec: LaunchSpec,
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    pub(crate) reason: String,
    pub(crate) supervisor: ProcessIdentity,
    pub(crate) journal: Journal,
    pub(crate) sessions: Sessions,
    pub(crate) wiring: Wiring,
    pub(crate) crew: Crew,
    pub(crate) owner_gone: Arc<AtomicBool>,
    /// Set at the end, for clients that ask after it.
    pub(crate) last_status: Arc<OnceLock<Status>>,
    pub(crate) launched_at: Instant,
}

/// How a machine's life was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// Why it ended.
    pub(crate) cause: EndCause,
    /// Whether its owner was gone before it could be told.
    pub(crate) abandoned: bool,
}

pub(crate) struct Engine {
    setup: Setup,
    life: Lifecycle,
    inbox: Receiver<Message>,
    outbox: Sender<Message>,
    running: Option<Running>,
    timers: Vec<(Timer, Instant)>,
    /// Clients that wait for the end.
    until_end: Vec<Reply<Status>>,
    /// Sessions that wait for the guest.
    until_ready: Vec<Reply<PathBuf>>,
    workload_asked: bool,
    ready_at: Option<Timestamp>,
    result_at: Option<Timestamp>,
    capture: Option<Arc<Mutex<Capture>>>,
    saving: Option<JoinHandle<()>>,
    over: Option<Over>,
}

/// One attempt's machine.
struct Running {
    link: Option<Link>,
    console: Console,
    machine: Arc<dyn Machine>,
    /// Ends with the VMM.
    watcher: JoinHandle<()>,
}

impl Engine {
    /// An engine, and where to tell it things.
    pub(crate) fn new(setup: Setup) -> (Self, Sender<Message>, VecDeque<Action>) {
        let (outbox, inbox) = channel();
        let (life, actions) = Lifecycle::start(
            Duration::from_millis(setup.spec.boot_timeout_ms),
            setup.spec.time_limit_ms.map(Duration::from_millis),
        );
        let engine = Self {
            setup,
            life,
            inbox,
            outbox: outbox.clone(),
            running: None,
            timers: Vec::new(),
            until_end: Vec::new(),
            until_ready: Vec::new(),
            workload_asked: false,
            ready_at: None,
            result_at: None,
            capture: None,
            saving: None,
            over: None,
        };
        (engine, outbox, actions.into())
    }

    /// Runs the machine to its end. The VMM is a child of the calling thread.
    pub(crate) fn run(mut self, first: VecDeque<Action>) -> Over {
        self.setup.journal.record(
            State::Starting,
            EventKind::Starting {
                backend: self.setup.hypervisor.backend(),
                reason: self.setup.reason.clone(),
            },
        );
        self.connect();
        self.perform(first);
        loop {
            if let Some(over) = self.over {
                return over;
            }
            let next = self.timers.iter().map(|(_, at)| *at).min();
            let message = match next {
                Some(at) => self
                    .inbox
                    .recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self
                    .inbox
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => self.ring(),
                // The engine holds a sender itself, so this cannot be.
                Err(RecvTimeoutError::Disconnected) => self.feed(Input::Kill),
            }
        }
    }

    /// Lets connections come in; they wait for the guest.
    fn connect(&self) {
        let ports = self.setup.wiring.ports();
        if !ports.is_empty() {
            let kind = EventKind::PortsPublished { ports };
            self.setup.journal.record(State::Starting, kind);
        }
        if let Err(error) = self.setup.wiring.start() {
            tracing::error!("no connection will be accepted: {error}");
        }
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(index) = self.timers.iter().position(|(_, at)| *at <= now) {
            let (timer, _) = self.timers.swap_remove(index);
            self.feed(Input::Timer(timer));
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Machine { attempt, mut input } => {
                if attempt != self.life.attempt() {
                    return;
                }
                if let (Input::VmmExited { console, .. }, Some(running)) =
                    (&mut input, &self.running)
                {
                    *console = running.console.verdict();
                }
                self.feed(input);
            }
            Message::Happened(input) => self.feed(input),
            Message::Ask { ask, reply } => self.ask(ask, reply),
            Message::Exec { role, reply } => self.exec(role, reply),
            Message::Console { reply } => self.console(&reply),
            Message::WorkloadStarted(capture) => {
                self.capture = Some(capture);
                self.feed(Input::WorkloadStarted);
            }
            Message::WorkloadAbandoned => self.workload_asked = false,
            Message::WorkloadFailed(capture) => {
                let report = lock(&capture).report().cloned();
                self.capture = Some(capture);
                if let Some(report) = report {
                    self.feed(Input::WorkloadEnded { report });
                }
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let save = matches!(input, Input::WorkloadEnded { .. });
        let actions = self.life.on(input, self.ms());
        self.perform(actions.into());
        if save {
            self.result_at = Some(SystemTime::now().into());
            // Beside the guest's shutdown, not before it.
            self.save();
        }
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.setup.launched_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn perform(&mut self, mut actions: VecDeque<Action>) {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Launch { attempt } => {
                    let input = self.launch(attempt);
                    let ms = self.ms();
                    actions.extend(self.life.on(input, ms));
                }
                Action::Discard => self.discard(),
                Action::Record { state, kind } => self.record(state, kind),
                Action::Thaw => {
                    if let Some(running) = &self.running
                        && let Err(error) = running.machine.resume()
                    {
                        tracing::warn!("the machine could not be thawed to end: {error}");
                    }
                }
                Action::Shutdown { grace_ms } => self.tell(&HostMessage::Shutdown { grace_ms }),
                Action::Kill => self.kill(),
                Action::Arm(timer, after) => {
                    self.timers.retain(|(armed, _)| *armed != timer);
                    // A deadline beyond the clock's end never comes.
                    if let Some(at) = Instant::now().checked_add(after) {
                        self.timers.push((timer, at));
                    }
                }
                Action::Disarm(timer) => self.timers.retain(|(armed, _)| *armed != timer),
                Action::OpenSessions => {
                    self.ready_at = Some(SystemTime::now().into());
                    self.open_sessions();
                    if let Some(running) = &self.running {
                        let half_close = self.setup.hypervisor.capabilities().half_close;
                        let vsock = running.machine.vsock();
                        self.setup.wiring.open(vsock, half_close);
                    }
                }
                Action::Finish {
                    state,
                    cause,
                    detail,
                    with_console,
                } => self.finish(state, cause, detail, with_console),
            }
        }
    }

    fn record(&self, state: State, kind: EventKind) {
        // Nothing of an ephemeral machine is there after a crash.
        let durable = !self.setup.spec.ephemeral
            && matches!(
                kind,
                EventKind::GuestReady { .. }
                    | EventKind::Paused
                    | EventKind::Resumed
                    | EventKind::Quarantined
                    | EventKind::VmmStarted { .. }
            );
        self.setup.journal.record(state, kind);
        if durable {
            let journal = self.setup.journal.clone();
            if let Err(error) = self.setup.crew.spawn("sync", move || journal.sync()) {
                tracing::warn!("events are not synced in time: {error}");
            }
        }
    }

    fn tell(&self, message: &HostMessage) {
        let told = match self
            .running
            .as_ref()
            .and_then(|running| running.link.as_ref())
        {
            Some(link) => link.send(message),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = told {
            // Its deadline stands all the same, and ends the machine.
            tracing::warn!("the guest could not be told to shut down: {error}");
        }
    }

    fn kill(&self) {
        if let Some(running) = &self.running
            && let Err(error) = running.machine.kill()
        {
            tracing::error!("the VMM could not be killed: {error}");
        }
    }
}
