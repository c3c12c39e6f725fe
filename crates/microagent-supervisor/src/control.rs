//! The control socket: clients, their requests, and their connections' changes of use.

mod interactive;
mod process;

use std::{
    collections::HashMap,
    io::{self, Read},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc, Mutex, OnceLock,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use microagent_protocol::{
    ExecRequest, ExecRole, FrameError, FrameKind, FrameReader, MachineStats, ReadinessSignal,
    frame::write_json,
    guest::SessionRequest,
    supervisor::{
        Answer, Command, ErrorKind, ErrorReport, Request, Response, SUPERVISOR_PROTOCOL, Status,
    },
};
use serde::Deserialize;

use crate::{
    copy,
    crew::{Crew, lock},
    engine::{Ask, Message},
    events::{Journal, hang_up},
    lifecycle::Input,
    link,
    owner::Owner,
    peer,
    readiness::Proofs,
    session::{MAX_SESSIONS, Sessions},
    stats::Sampler,
    wiring::Wiring,
};

/// The most connections at a time: every session has one, and some are left
/// for control, so that sessions cannot crowd it out.
const MAX_CLIENTS: usize = MAX_SESSIONS + 64;

/// The longest reason a client may give, in characters.
const MAX_REASON: usize = 1024;

/// How long an answer may wait for a client that does not read.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What a client's thread works with.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) outbox: Sender<Message>,
    pub(crate) sessions: Sessions,
    pub(crate) wiring: Wiring,
    pub(crate) proofs: Proofs,
    pub(crate) journal: Journal,
    pub(crate) owner: Owner,
    pub(crate) last_status: Arc<OnceLock<Status>>,
    pub(crate) owned: bool,
    pub(crate) capture_limit: u32,
    pub(crate) crew: Crew,
    pub(crate) clients: Clients,
}

/// The open connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients(Arc<Mutex<Connections>>);

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, UnixStream>,
}

impl Clients {
    fn add(&self, stream: UnixStream) -> Option<Client> {
        let mut clients = lock(&self.0);
        if clients.open.len() >= MAX_CLIENTS {
            return None;
        }
        clients.next += 1;
        let id = clients.next;
        clients.open.insert(id, stream);
        Some(Client {
            clients: self.clone(),
            id,
        })
    }

    /// Ends a direction of every connection.
    pub(crate) fn hang_up(&self, how: Shutdown) {
        for stream in lock(&self.0).open.values() {
            hang_up(stream, how);
        }
    }
}

struct Client {
    clients: Clients,
    id: u64,
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.clients.0).open.remove(&self.id);
    }
}

/// Accepts clients until `watched` is closed.
pub(crate) fn serve(listener: &UnixListener, watched: &UnixStream, hub: &Hub) {
    loop {
        let stream = match link::accept(listener, watched) {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => {
                // Out of descriptors or memory: clients that are there go on.
                tracing::error!("cannot accept a client: {error}");
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if let Err(error) = admit(stream, hub) {
            tracing::warn!("a client is turned away: {error}");
        }
    }
}

fn admit(stream: UnixStream, hub: &Hub) -> io::Result<()> {
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    if let Err(error) = peer::check(&stream) {
        refuse(
            &stream,
            ErrorReport::new(ErrorKind::Permanent, error.to_string()),
        );
        return Err(error);
    }
    let Some(client) = hub.clients.add(stream.try_clone()?) else {
        refuse(
            &stream,
            ErrorReport::new(
                ErrorKind::Transient,
                format!("{MAX_CLIENTS} clients are connected, which is the most."),
            ),
        );
        return Err(io::Error::other("too many clients"));
    };
    let served = hub.clone();
    hub.crew.spawn("client", move || {
        let _client = client;
        if let Err(error) = converse(stream, &served) {
            tracing::debug!("a client was lost: {error}");
        }
    })
}

/// Starts the machine's own workload once the guest is ready, as a client would that leaves at once.
pub(crate) fn start_workload(request: ExecRequest, hub: &Hub) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let served = hub.clone();
    hub.crew.spawn("workload", move || {
        if let Err(error) = converse(theirs, &served) {
            tracing::warn!("the workload was not started: {error}");
        }
    })?;
    let outbox = hub.outbox.clone();
    hub.crew.spawn("workload-start", move || {
        let failed = match ask_to_run(&ours, request) {
            Ok(Ok(Answer::Started { .. } | Answer::FailedToStart { .. })) => return,
            Ok(Ok(other)) => format!("the answer was {other:?}"),
            Ok(Err(report)) => report.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!("the workload was not started: {failed}");
        // A machine without its workload is of no use; one that ended says so itself.
        let _ = outbox.send(Message::Happened(Input::WorkloadLost));
    })
}

fn ask_to_run(
    mut stream: &UnixStream,
    request: ExecRequest,
) -> Result<Result<Answer, ErrorReport>, FrameError> {
    write_json(
        &mut stream,
        FrameKind::Request,
        &Request::new(Command::Exec(request)),
    )?;
    let mut reader = FrameReader::new(stream);
    let response: Response = reader
        .require()?
        .expect_json(FrameKind::Response, "a response")?;
    Ok(response.into_result())
}

fn refuse(mut stream: &UnixStream, report: ErrorReport) {
    if let Err(error) = write_json(
        &mut stream,
        FrameKind::Response,
        &Response::new("", Err(report)),
    ) {
        tracing::debug!("a client could not be told why it is turned away: {error}");
    }
}

/// Reads a request's version and identifier before its command, which may be
/// one of a later version.
#[derive(Deserialize)]
struct Envelope {
    protocol: u32,
    #[serde(default)]
    id: String,
}

/// A request from its JSON, or the answer to what is none.
pub(crate) fn parse(json: &[u8]) -> Result<Request, Box<Response>> {
    let invalid = |id: &str, message: String| {
        Box::new(Response::new(
            id,
            Err(ErrorReport::new(ErrorKind::Invalid, message)),
        ))
    };
    let envelope: Envelope = serde_json::from_slice(json)
        .map_err(|error| invalid("", format!("The request is not understood: {error}.")))?;
    if envelope.protocol != SUPERVISOR_PROTOCOL {
        return Err(Box::new(Response::new(
            envelope.id,
            Err(ErrorReport::new(
                ErrorKind::Unsupported,
                format!(
                    "The request speaks protocol {}, this supervisor {SUPERVISOR_PROTOCOL}.",
                    envelope.protocol
                ),
            )
            .remedy("Use the microagent-supervisor of the same version.")),
        )));
    }
    serde_json::from_slice(json).map_err(|error| {
        invalid(
            &envelope.id,
            format!("The request is not understood: {error}."),
        )
    })
}

/// Reads requests and answers them, until the connection becomes something else or ends.
fn converse(stream: UnixStream, hub: &Hub) -> io::Result<()> {
    let mut reader = FrameReader::new(stream);
    let mut sampler = Sampler::default();
    loop {
        let parsed = match reader.read() {
            Ok(Some(frame)) if frame.kind == FrameKind::Request => parse(frame.payload),
            Ok(Some(frame)) => {
                let kind = frame.kind;
                let report = ErrorReport::new(
                    ErrorKind::Invalid,
                    format!("A {kind:?} frame came where a request was due."),
                );
                return respond(&reader, "", Err(report));
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                let report = ErrorReport::new(ErrorKind::Invalid, error.to_string());
                return respond(&reader, "", Err(report));
            }
        };
        reader = match parsed {
            Ok(request) => match answer(reader, request, &mut sampler, hub)? {
                Some(reader) => reader,
                None => return Ok(()),
            },
            Err(response) => {
                send(&reader, &response)?;
                reader
            }
        };
    }
}

/// Answers a request; gives the connection back unless it has become a session, a copy, a console or
/// a subscription.
fn answer(
    reader: FrameReader<UnixStream>,
    request: Request,
    sampler: &mut Sampler,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let id = &request.id;
    let outcome = match request.command {
        Command::Inspect => steer(Ask::Inspect, hub),
        Command::Halt { grace_ms } => steer(Ask::Halt { grace_ms }, hub),
        Command::Stop { grace_ms } => steer(Ask::Stop { grace_ms }, hub),
        Command::Kill => steer(Ask::Kill, hub),
        Command::Condemn { reason } => {
            let reason = reason.chars().take(MAX_REASON).collect();
            steer(Ask::Condemn { reason }, hub)
        }
        Command::Pause => steer(Ask::Pause, hub),
        Command::Resume => steer(Ask::Resume, hub),
        Command::Quarantine => steer(Ask::Quarantine, hub),
        Command::Rebind { ports } => steer(Ask::Rebind { ports }, hub),
        Command::Stats => stats(sampler, hub).map(|stats| Answer::Stats(Box::new(stats))),
        Command::Host(_) | Command::Check(_) | Command::Launch(_) => Err(ErrorReport::new(
            ErrorKind::Invalid,
            "Host, check and launch are asked on a new supervisor's standard input.",
        )),
        Command::Subscribe { owner } => {
            return subscribe(reader, id, owner, hub).map(|()| None);
        }
        Command::Exec(request) => return process::run(reader, id, request, hub),
        Command::Shell(line) => return interactive::run_line(reader, id, line, hub),
        Command::Console => return interactive::attach(reader, id, hub),
        Command::CopyOut(request) => {
            return copy::serve(reader, id, &SessionRequest::CopyOut(request), hub);
        }
        Command::CopyIn(request) => {
            return copy::serve(reader, id, &SessionRequest::CopyIn(request), hub);
        }
    };
    respond(&reader, id, outcome)?;
    Ok(Some(reader))
}

/// Has the engine do something, and says how the machine is then.
fn steer(ask: Ask, hub: &Hub) -> Result<Answer, ErrorReport> {
    let inspects = ask == Ask::Inspect;
    let mut status = control(ask, hub)?;
    if inspects && status.state.is_live() {
        look_at_guest(&mut status, hub);
        look_at_mediation(&mut status, hub);
    }
    Ok(Answer::Status(Box::new(status)))
}

/// Adds what a process that is started in the guest shows.
fn look_at_guest(status: &mut Status, hub: &Hub) {
    if hub.owned {
        return; // Its owner runs what it wants to know of.
    }
    hub.proofs.complete(status, &hub.sessions, &hub.crew, || {
        let (reply, ticket) = channel();
        let role = ExecRole::Command;
        deliver(hub, Message::Exec { role, reply })?;
        ticket.recv().map_err(|_| gone())?
    });
}

/// Adds what takes a moment to find out, and so is not the engine's to.
fn look_at_mediation(status: &mut Status, hub: &Hub) {
    if let Some(readiness) = hub.wiring.mediation_readiness() {
        status
            .readiness
            .insert(ReadinessSignal::MediationReady, readiness);
    }
}

fn stats(sampler: &mut Sampler, hub: &Hub) -> Result<MachineStats, ErrorReport> {
    let status = control(Ask::Inspect, hub)?;
    let vmm = status.vmm.ok_or_else(|| {
        ErrorReport::new(
            ErrorKind::Conflict,
            format!(
                "The workspace {} has no machine to look at.",
                status.workspace
            ),
        )
    })?;
    sampler
        .sample(vmm.pid, hub.sessions.count(), hub.wiring.connections())
        .map_err(|error| {
            ErrorReport::new(
                ErrorKind::Transient,
                format!("The machine's process cannot be looked at: {error}."),
            )
        })
}

fn control(ask: Ask, hub: &Hub) -> Result<Status, ErrorReport> {
    let (reply, answer) = channel();
    let asked = Message::Ask {
        ask: ask.clone(),
        reply,
    };
    if hub.outbox.send(asked).is_ok()
        && let Ok(outcome) = answer.recv()
    {
        return outcome;
    }
    match (ask, hub.last_status.get()) {
        // What is asked for is so already.
        (Ask::Inspect | Ask::Halt { .. } | Ask::Stop { .. } | Ask::Kill, Some(status)) => {
            Ok(status.clone())
        }
        _ => Err(gone()),
    }
}

pub(crate) fn deliver(hub: &Hub, message: Message) -> Result<(), ErrorReport> {
    hub.outbox.send(message).map_err(|_| gone())
}

pub(crate) fn gone() -> ErrorReport {
    ErrorReport::new(ErrorKind::Conflict, "The machine has ended.")
}

pub(crate) fn respond(
    reader: &FrameReader<UnixStream>,
    id: &str,
    outcome: Result<Answer, ErrorReport>,
) -> io::Result<()> {
    send(reader, &Response::new(id, outcome))
}

fn send(reader: &FrameReader<UnixStream>, response: &Response) -> io::Result<()> {
    write_json(&mut reader.get_ref(), FrameKind::Response, response).map_err(io::Error::other)
}

fn subscribe(
    reader: FrameReader<UnixStream>,
    id: &str,
    as_owner: bool,
    hub: &Hub,
) -> io::Result<()> {
    if as_owner && !hub.owner.claim() {
        let report = ErrorReport::new(ErrorKind::Conflict, "The machine has an owner already.");
        return respond(&reader, id, Err(report));
    }
    let followed = respond(&reader, id, Ok(Answer::Subscribed)).and_then(|()| {
        // A follower may be slow; a bounded queue stands between it and the machine.
        reader.get_ref().set_write_timeout(None)?;
        hub.journal.follow(reader.get_ref(), &hub.crew)
    });
    let mut stream = reader.into_inner();
    if followed.is_ok() {
        // Nothing more is said on this side; what matters is when it ends.
        let mut nothing = [0_u8; 512];
        loop {
            match stream.read(&mut nothing) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
    if as_owner {
        hub.owner.connection_gone();
    }
    let id = followed?;
    hub.journal.unfollow(id);
    Ok(())
}
