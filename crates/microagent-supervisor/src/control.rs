//! The control socket: clients, their requests, and their connections' changes of use.

mod interactive;

use std::{
    collections::HashMap,
    io::{self, Read, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use microagent_protocol::{
    ExecRequest, ExecRole, FrameError, FrameKind, FrameReader, MachineStats, ReadinessSignal,
    exec::{ExitReport, ExitStatus},
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
    result::Capture,
    session::{self, MAX_SESSIONS, Notice, Opened, Orphan, Outcome, Relay, Sessions, Settled},
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
                format!("{MAX_CLIENTS} clients are connected, which is the most"),
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
        .map_err(|error| invalid("", format!("the request is not understood: {error}")))?;
    if envelope.protocol != SUPERVISOR_PROTOCOL {
        return Err(Box::new(Response::new(
            envelope.id,
            Err(ErrorReport::new(
                ErrorKind::Unsupported,
                format!(
                    "the request speaks protocol {}, this supervisor {SUPERVISOR_PROTOCOL}",
                    envelope.protocol
                ),
            )
            .remedy("use the microagent-supervisor of the same version")),
        )));
    }
    serde_json::from_slice(json).map_err(|error| {
        invalid(
            &envelope.id,
            format!("the request is not understood: {error}"),
        )
    })
}

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
                    format!("a {kind:?} frame came where a request was due"),
                );
                return respond(&reader, "", Err(report));
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                let report = ErrorReport::new(ErrorKind::Invalid, error.to_string());
                return respond(&reader, "", Err(report));
            }
        };
        let request = match parsed {
            Ok(request) => request,
            Err(response) => {
                send(&reader, &response)?;
                continue;
            }
        };
        let id = request.id;
        let ask = match request.command {
            Command::Inspect => Ask::Inspect,
            Command::Halt { grace_ms } => Ask::Halt { grace_ms },
            Command::Stop { grace_ms } => Ask::Stop { grace_ms },
            Command::Kill => Ask::Kill,
            Command::Condemn { reason } => Ask::Condemn {
                reason: reason.chars().take(MAX_REASON).collect(),
            },
            Command::Pause => Ask::Pause,
            Command::Resume => Ask::Resume,
            Command::Quarantine => Ask::Quarantine,
            Command::Rebind { ports } => Ask::Rebind { ports },
            Command::Stats => {
                let stats = stats(&mut sampler, hub).map(|stats| Answer::Stats(Box::new(stats)));
                respond(&reader, &id, stats)?;
                continue;
            }
            Command::Subscribe { owner } => return subscribe(reader, &id, owner, hub),
            Command::Exec(request) => match exec(reader, &id, request, hub)? {
                Some(again) => {
                    reader = again;
                    continue;
                }
                None => return Ok(()),
            },
            Command::Shell(line) => match interactive::run_line(reader, &id, line, hub)? {
                Some(again) => {
                    reader = again;
                    continue;
                }
                None => return Ok(()),
            },
            Command::Console => match interactive::attach(reader, &id, hub)? {
                Some(again) => {
                    reader = again;
                    continue;
                }
                None => return Ok(()),
            },
            Command::CopyOut(request) => {
                let request = SessionRequest::CopyOut(request);
                match copy::serve(reader, &id, &request, hub)? {
                    Some(again) => {
                        reader = again;
                        continue;
                    }
                    None => return Ok(()),
                }
            }
            Command::CopyIn(request) => {
                let request = SessionRequest::CopyIn(request);
                match copy::serve(reader, &id, &request, hub)? {
                    Some(again) => {
                        reader = again;
                        continue;
                    }
                    None => return Ok(()),
                }
            }
            Command::Host(_) | Command::Check(_) | Command::Launch(_) => {
                let report = ErrorReport::new(
                    ErrorKind::Invalid,
                    "host, check and launch are asked on a new supervisor's standard input",
                );
                respond(&reader, &id, Err(report))?;
                continue;
            }
        };
        let inspects = ask == Ask::Inspect;
        let outcome = control(ask, hub).map(|mut status| {
            if inspects && status.state.is_live() {
                look_at_guest(&mut status, hub);
                look_at_mediation(&mut status, hub);
            }
            Answer::Status(Box::new(status))
        });
        respond(&reader, &id, outcome)?;
    }
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
            format!("workspace {} has no machine to look at", status.workspace),
        )
    })?;
    sampler
        .sample(vmm.pid, hub.sessions.count(), hub.wiring.connections())
        .map_err(|error| {
            ErrorReport::new(
                ErrorKind::Transient,
                format!("the machine's process cannot be looked at: {error}"),
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
    ErrorReport::new(ErrorKind::Conflict, "the machine has ended")
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
        let report = ErrorReport::new(ErrorKind::Conflict, "the machine has an owner already");
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

/// Waits until the guest takes sessions, and says where.
fn when_ready(
    client: &FrameReader<UnixStream>,
    role: ExecRole,
    hub: &Hub,
) -> Result<PathBuf, ErrorReport> {
    let (reply, ticket) = channel();
    deliver(hub, Message::Exec { role, reply })?;
    let vsock = ticket.recv().map_err(|_| gone())??;
    // Nothing may be run for somebody who gave up waiting.
    if role != ExecRole::Workload && session::has_hung_up(client.get_ref()) {
        return Err(ErrorReport::new(
            ErrorKind::Transient,
            "the client was gone before the guest was ready",
        ));
    }
    Ok(vsock)
}

/// Tells of a session from its beginning to its end at once.
fn tell_all(
    reader: &FrameReader<UnixStream>,
    id: &str,
    pid: u32,
    settled: Settled,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(256 + settled.output.len());
    let begun = Response::new(id, Ok(Answer::Started { pid }));
    write_json(&mut bytes, FrameKind::Response, &begun).map_err(io::Error::other)?;
    bytes.extend(settled.output);
    write_json(&mut bytes, FrameKind::Exit, &settled.report).map_err(io::Error::other)?;
    reader.get_ref().write_all(&bytes)?;
    hang_up(reader.get_ref(), Shutdown::Both);
    Ok(())
}

/// Runs a session on this connection; gives the connection back if none came of it.
fn exec(
    reader: FrameReader<UnixStream>,
    id: &str,
    request: ExecRequest,
    hub: &Hub,
) -> io::Result<Option<FrameReader<UnixStream>>> {
    let is_workload = request.role == ExecRole::Workload;
    let stdin = request.stdin;
    let seat = match hub.sessions.admit() {
        Ok(seat) => seat,
        Err(report) => {
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    let vsock = match when_ready(&reader, request.role, hub) {
        Ok(vsock) => vsock,
        Err(report) => {
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    let capture = is_workload.then(|| Arc::new(Mutex::new(Capture::new(hub.capture_limit))));
    let (pid, mut guest) = match session::open(&seat, &vsock, request) {
        Ok(Opened::Started { pid, guest }) => (pid, guest),
        Ok(Opened::Failed(status)) => {
            if let Some(capture) = &capture {
                lock(capture).exited(ExitReport {
                    status: status.clone(),
                    oom_kills: 0,
                });
                // An engine that is gone has recorded the end already.
                let _ = deliver(hub, Message::WorkloadFailed(Arc::clone(capture)));
            }
            let outcome = match status {
                ExitStatus::FailedToStart { reason, message } => {
                    Ok(Answer::FailedToStart { reason, message })
                }
                ExitStatus::Exited { .. } | ExitStatus::Signaled { .. } => Err(ErrorReport::new(
                    ErrorKind::Internal,
                    "a process that never ran has an exit status",
                )),
            };
            let told = respond(&reader, id, outcome);
            if is_workload {
                // As above.
                let _ = deliver(hub, Message::Happened(Input::WorkloadDelivered));
            }
            told?;
            return Ok(Some(reader));
        }
        Err(report) => {
            if is_workload {
                // As above.
                let _ = deliver(hub, Message::WorkloadAbandoned);
            }
            respond(&reader, id, Err(report))?;
            return Ok(Some(reader));
        }
    };
    if let Some(capture) = &capture {
        // As above.
        let _ = deliver(hub, Message::WorkloadStarted(Arc::clone(capture)));
    }
    // Who the machine lives for is the owner's connection's to say, and nobody else's.
    let orphan = if is_workload {
        Orphan::Detach
    } else {
        Orphan::End
    };
    if !is_workload && let Ok(Some(settled)) = session::settled(&mut guest) {
        // Ready for whatever the client asks next.
        hub.sessions.keep(guest);
        drop(seat);
        return tell_all(&reader, id, pid, settled).map(|()| None);
    }
    let told = respond(&reader, id, Ok(Answer::Started { pid }));
    if let Err(error) = told
        && orphan == Orphan::End
    {
        return Err(error);
    }
    // From here on a slow client slows its process down and is no error.
    reader.get_ref().set_write_timeout(None)?;
    let relay = Relay {
        client: reader,
        guest,
        orphan,
        stdin,
        capture,
        seat,
    };
    let outbox = hub.outbox.clone();
    relay.run(&hub.crew, move |notice| {
        let input = match notice {
            Notice::Exiting(report) if is_workload => Input::WorkloadEnded { report },
            Notice::Over(Outcome::Exited) if is_workload => Input::WorkloadDelivered,
            Notice::Over(Outcome::Lost) if is_workload => Input::WorkloadLost,
            Notice::Over(Outcome::Violation(detail)) => Input::Violation { detail },
            Notice::Exiting(_) | Notice::Over(_) => return,
        };
        // As above.
        let _ = outbox.send(Message::Happened(input));
    })?;
    Ok(None)
}
