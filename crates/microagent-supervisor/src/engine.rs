//! The one thread that runs a machine: it feeds the lifecycle and does what comes out.
//!
//! Everything that happens anywhere in the supervisor arrives here as a
//! [`Message`], one after the other; nothing else touches the machine.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use microagent_hypervisor::{
    ConsoleSpec, DiskSpec, Exit, Hypervisor, Machine, MachineSpec, VsockSpec,
};
use microagent_protocol::{
    EndCause, ExecRole, LaunchSpec, ProcessIdentity, State,
    guest::{BASE_SERIAL, GUEST_CID, GuestNetwork, HELLO_PORT, HostMessage, SCRATCH_SERIAL},
    supervisor::{ErrorKind, ErrorReport, EventKind, Status},
};

use crate::{
    Error,
    console::Console,
    crew::{Crew, lock},
    events::Journal,
    lifecycle::{Action, ConsoleVerdict, Input, Lifecycle, Timer},
    link::{Introduction, Link},
    result::Capture,
    session::Sessions,
};

/// The vsock's Unix socket in the runtime directory.
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";

/// How long a discarded VMM is waited for at a time before that is logged.
const REAP_NOTICE: Duration = Duration::from_secs(10);

/// How long a dead VMM's guest may still be heard.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(300);

/// A control command, as the engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Inspect,
    Halt { grace_ms: u64 },
    Stop { grace_ms: u64 },
    Kill,
    Pause,
    Resume,
    Quarantine,
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
    pub(crate) crew: Crew,
    pub(crate) owner_gone: Arc<AtomicBool>,
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
                Action::OpenSessions => self.open_sessions(),
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
        let durable = matches!(
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

    // --- the machine -------------------------------------------------------

    fn launch(&mut self, attempt: u32) -> Input {
        match self.try_launch(attempt) {
            Ok(vmm) => Input::VmmStarted { vmm },
            Err((reason, may_retry)) => Input::LaunchFailed { reason, may_retry },
        }
    }

    fn try_launch(&mut self, attempt: u32) -> Result<ProcessIdentity, (String, bool)> {
        let ours = |error: Error| (error.to_string(), false);
        let spec = machine_spec(&self.setup.spec, attempt);
        let mut hello = spec.vsock.uds.clone().into_os_string();
        hello.push(format!("_{HELLO_PORT}"));
        let network = self
            .setup
            .hypervisor
            .network_plan(spec.network)
            .map(|plan| GuestNetwork {
                address: plan.address,
                prefix: plan.prefix,
                gateway: plan.gateway,
                dns: plan.dns,
            });
        let introduction = Introduction {
            hostname: self.setup.spec.hostname.clone(),
            network,
        };
        let outbox = self.outbox.clone();
        let mut link = Link::listen(
            hello.as_ref(),
            introduction,
            &self.setup.crew,
            move |input| {
                // The engine may be gone already; then nobody needs to know.
                let _ = outbox.send(Message::Machine { attempt, input });
            },
        )
        .map_err(ours)?;
        let console = Console::from_now(spec.console.log.clone());
        let machine: Arc<dyn Machine> = self
            .setup
            .hypervisor
            .launch(&spec)
            .map_err(|error| (error.to_string(), may_retry(&error)))?
            .into();
        let vmm = machine.vmm();
        let watched = Arc::clone(&machine);
        let last_words = link.over();
        let outbox = self.outbox.clone();
        let watcher = std::thread::Builder::new()
            .name("vmm-exit".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                let exit = watch(&*watched);
                drop(watched);
                // A guest that powers off says so first; its word is still on the way.
                if let Some(last_words) = last_words {
                    last_words.wait(LAST_WORDS_LIMIT);
                }
                // As above.
                let _ = outbox.send(Message::Machine {
                    attempt,
                    input: Input::VmmExited {
                        exit,
                        console: ConsoleVerdict::default(),
                    },
                });
            })
            .map_err(|error| ours(Error::system("start a thread")(error)))?;
        self.running = Some(Running {
            link: Some(link),
            console,
            machine,
            watcher,
        });
        Ok(vmm)
    }

    /// Ends what is left of the present attempt, and waits until it is gone.
    fn discard(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        drop(running.link);
        if let Err(error) = running.machine.kill() {
            tracing::error!("the VMM could not be killed: {error}");
        }
        if running.watcher.join().is_err() {
            tracing::error!("the thread that watched the VMM panicked");
        }
        drop(running.machine);
    }

    // --- clients -----------------------------------------------------------

    fn ask(&mut self, ask: Ask, reply: Reply<Status>) {
        let input = match ask {
            Ask::Inspect => return self.answer(&reply, Ok(())),
            Ask::Pause => {
                let done = self.pause();
                return self.answer(&reply, done);
            }
            Ask::Resume => {
                let done = self.resume();
                return self.answer(&reply, done);
            }
            Ask::Quarantine => {
                let done = self.quarantine();
                return self.answer(&reply, done);
            }
            Ask::Halt { grace_ms } => Input::Halt { grace_ms },
            Ask::Stop { grace_ms } => Input::Stop { grace_ms },
            Ask::Kill => Input::Kill,
        };
        // Answered when it is true.
        self.until_end.push(reply);
        self.feed(input);
    }

    fn answer(&self, reply: &Reply<Status>, done: Result<(), ErrorReport>) {
        // A client that did not wait needs no answer.
        let _ = reply.send(done.map(|()| self.status()));
    }

    fn status(&self) -> Status {
        Status {
            workspace: self.setup.spec.workspace.clone(),
            state: self.life.state(),
            sequence: self.setup.journal.sequence(),
            backend: Some(self.setup.hypervisor.backend()),
            supervisor: self.setup.supervisor.clone(),
            vmm: self.running.as_ref().map(|running| running.machine.vmm()),
            end: self.over.map(|over| over.cause),
        }
    }

    fn machine_to(&self, what: &str, from: &[State]) -> Result<Arc<dyn Machine>, ErrorReport> {
        let state = self.life.state();
        match &self.running {
            Some(running) if from.contains(&state) && self.life.cause().is_none() => {
                Ok(Arc::clone(&running.machine))
            }
            _ if self.life.cause().is_some() => Err(conflict(format!(
                "workspace {} is ending and cannot be {what}",
                self.setup.spec.workspace
            ))),
            _ => Err(conflict(format!(
                "workspace {} is {state} and cannot be {what}",
                self.setup.spec.workspace
            ))),
        }
    }

    fn pause(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Paused {
            return Ok(());
        }
        let machine = self.machine_to("paused", &[State::Running])?;
        machine.pause().map_err(|error| refused(&error))?;
        self.feed(Input::Paused);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Running {
            return Ok(());
        }
        let machine = self.machine_to("resumed", &[State::Paused])?;
        machine.resume().map_err(|error| refused(&error))?;
        self.feed(Input::Resumed);
        // It slept through the time in between.
        if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)
            && let Ok(unix_nanos) = u64::try_from(now.as_nanos())
        {
            self.tell(&HostMessage::SetClock { unix_nanos });
        }
        Ok(())
    }

    fn quarantine(&mut self) -> Result<(), ErrorReport> {
        if self.life.state() == State::Quarantined {
            return Ok(());
        }
        let machine = self.machine_to("quarantined", &[State::Running, State::Paused])?;
        let frozen = machine.pause();
        // Whatever came of the freezing, it is cut off.
        let severed = machine.sever();
        self.setup.sessions.close();
        if let Some(running) = &mut self.running {
            running.link = None;
        }
        frozen.and(severed).map_err(|error| {
            refused(&error).remedy("its connections were cut as far as possible; kill it")
        })?;
        self.feed(Input::Quarantined);
        Ok(())
    }

    fn exec(&mut self, role: ExecRole, reply: Reply<PathBuf>) {
        let refusal = match self.life.state() {
            _ if self.life.cause().is_some() => Some("is ending".to_owned()),
            State::Starting | State::Running => None,
            state => Some(format!("is {state}")),
        };
        let refusal = match refusal {
            None if role == ExecRole::Workload
                && (self.workload_asked || self.life.has_workload()) =>
            {
                Some("has a workload already".to_owned())
            }
            refusal => refusal,
        };
        if let Some(what) = refusal {
            // A client that did not wait needs no answer.
            let _ = reply.send(Err(conflict(format!(
                "workspace {} {what}; no process was started",
                self.setup.spec.workspace
            ))));
            return;
        }
        self.workload_asked |= role == ExecRole::Workload;
        self.until_ready.push(reply);
        if self.life.state() == State::Running {
            self.open_sessions();
        }
    }

    fn open_sessions(&mut self) {
        let Some(running) = &self.running else { return };
        for reply in self.until_ready.drain(..) {
            // A client that did not wait needs no answer.
            let _ = reply.send(Ok(running.machine.vsock().to_owned()));
        }
    }

    // --- the end -----------------------------------------------------------

    fn save(&mut self) {
        let Some(capture) = self.capture.clone() else {
            return;
        };
        let directory = self.setup.spec.directory.clone();
        let saved = std::thread::Builder::new()
            .name("result".to_owned())
            .spawn(move || {
                if let Err(error) = lock(&capture).save(&directory) {
                    tracing::error!("the result is lost: {error}");
                }
            });
        match saved {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => tracing::error!("the result is not saved yet: {error}"),
        }
    }

    fn finish(
        &mut self,
        state: State,
        cause: EndCause,
        detail: Option<String>,
        with_console: bool,
    ) {
        let console = self
            .running
            .as_ref()
            .filter(|_| with_console)
            .and_then(|running| running.console.last_lines());
        self.discard();
        let saved = self
            .saving
            .take()
            .is_some_and(|saving| saving.join().is_ok());
        if !saved
            && let Some(capture) = &self.capture
            && let Err(error) = lock(capture).save(&self.setup.spec.directory)
        {
            tracing::error!("the result is lost: {error}");
        }
        let detail = match (detail, console) {
            (Some(detail), Some(console)) => {
                Some(format!("{detail}; the console's last lines:\n{console}"))
            }
            (None, Some(console)) => Some(format!("the console's last lines:\n{console}")),
            (detail, None) => detail,
        };
        self.over = Some(Over {
            cause,
            abandoned: self.setup.owner_gone.load(Ordering::SeqCst),
        });
        self.setup.journal.record(
            state,
            EventKind::Ended {
                cause,
                detail: detail.clone(),
                ms: self.ms(),
            },
        );
        self.setup.journal.close();
        self.setup.journal.sync();
        for reply in std::mem::take(&mut self.until_ready) {
            let mut report = ErrorReport::new(
                if cause == EndCause::BootFailed {
                    ErrorKind::Permanent
                } else {
                    ErrorKind::Conflict
                },
                format!(
                    "workspace {} ended ({}) before the process was started",
                    self.setup.spec.workspace,
                    cause_word(cause)
                ),
            );
            report.detail.clone_from(&detail);
            // A client that did not wait needs no answer.
            let _ = reply.send(Err(report));
        }
        for reply in std::mem::take(&mut self.until_end) {
            self.answer(&reply, Ok(()));
        }
    }
}

fn conflict(message: String) -> ErrorReport {
    ErrorReport::new(ErrorKind::Conflict, message)
}

fn refused(error: &microagent_hypervisor::Error) -> ErrorReport {
    use microagent_hypervisor::Error as Driver;
    let kind = match error {
        Driver::Unsupported(_) => ErrorKind::Unsupported,
        Driver::Timeout { .. } => ErrorKind::Transient,
        _ => ErrorKind::Permanent,
    };
    ErrorReport::new(kind, error.to_string())
}

/// Whether another machine type may do better.
fn may_retry(error: &microagent_hypervisor::Error) -> bool {
    use microagent_hypervisor::Error as Driver;
    matches!(
        error,
        Driver::VmmStart { .. } | Driver::Control { .. } | Driver::Timeout { .. }
    )
}

/// The cause as it stands in events.
fn cause_word(cause: EndCause) -> String {
    serde_json::to_value(cause)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn machine_spec(spec: &LaunchSpec, attempt: u32) -> MachineSpec {
    MachineSpec {
        name: spec.workspace.to_string(),
        memory: spec.memory,
        vcpus: spec.vcpus,
        kernel: spec.kernel.clone(),
        initramfs: spec.initramfs.clone(),
        disks: vec![
            DiskSpec {
                path: spec.base_disk.clone(),
                serial: BASE_SERIAL.to_owned(),
                read_only: true,
            },
            DiskSpec {
                path: spec.scratch_disk.clone(),
                serial: SCRATCH_SERIAL.to_owned(),
                read_only: false,
            },
        ],
        network: spec.network,
        vsock: VsockSpec {
            cid: GUEST_CID,
            uds: spec.runtime_dir.join(VSOCK_SOCKET),
        },
        console: ConsoleSpec {
            log: spec.directory.join("console.log"),
            limit: u64::from(spec.console_limit),
        },
        runtime_dir: spec.runtime_dir.clone(),
        attempt,
    }
}

/// Waits for the VMM's end, however long, and words it.
fn watch(machine: &dyn Machine) -> String {
    loop {
        match machine.wait(REAP_NOTICE) {
            Ok(Some(Exit::Code(code))) => return format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => return format!("signal {signal}"),
            Ok(None) => {}
            Err(error) => {
                // Nothing is known of it any more: make sure of it.
                tracing::error!("the VMM cannot be waited for: {error}");
                if let Err(error) = machine.kill() {
                    tracing::error!("the VMM could not be killed: {error}");
                }
                return "it could not be waited for".to_owned();
            }
        }
    }
}
