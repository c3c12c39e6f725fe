//! From a launch specification to a supervisor that listens, and to its end.

use std::{
    fs,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{Arc, atomic::AtomicBool, mpsc::Sender},
    time::{Duration, Instant},
};

use microagent_protocol::{
    EndCause, ExecRole, LaunchSpec, State,
    guest::HELLO_PORT,
    supervisor::{CONTROL_SOCKET, EventKind, Launched},
};

use crate::{
    Error,
    backend::Chosen,
    control::{self, Clients, Hub},
    crew::Crew,
    engine::{Engine, MACHINE_DIRECTORY, Message, Over, Setup, VSOCK_SOCKET},
    events::Journal,
    lifecycle::{Action, Input},
    link,
    owner::Owner,
    process,
    readiness::Proofs,
    session::Sessions,
    wiring::{self, Wiring},
};

/// The longest path of a Unix socket: `sun_path` less its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The longest a boot attempt may be given.
const MAX_BOOT: u64 = 60 * 60 * 1000;

/// The most output that may be kept of each stream: it is held in memory.
const MAX_CAPTURE: u32 = 64 * 1024 * 1024;

/// How long after the launch somebody who wants to follow it may take to connect.
const GREETING: Duration = Duration::from_secs(2);

/// How long clients may take to read the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// Looks at everything that can be wrong with `spec` without booting it.
///
/// # Errors
/// [`Error::BadSpec`] naming the field.
pub fn validate(spec: &LaunchSpec) -> Result<(), Error> {
    directory("directory", &spec.directory)?;
    directory("runtime_dir", &spec.runtime_dir)?;
    private("runtime_dir", &spec.runtime_dir)?;
    let ports = spec.mediation.iter().map(|route| u32::from(route.port));
    let longest = ports.fold(HELLO_PORT, u32::max);
    let longest = format!("{MACHINE_DIRECTORY}/{VSOCK_SOCKET}_{longest}");
    for name in [CONTROL_SOCKET, &longest] {
        let length = spec.runtime_dir.join(name).as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::spec(
                "runtime_dir",
                format!(
                    "{} is too long: the socket {name} in it would have a path of {length} \
                     bytes, and {MAX_SOCKET_PATH} are allowed; use a shorter directory",
                    spec.runtime_dir.display()
                ),
            ));
        }
    }
    file("kernel", &spec.kernel)?;
    file("initramfs", &spec.initramfs)?;
    file("base_disk", &spec.base_disk)?;
    file("scratch_disk", &spec.scratch_disk)?;
    let hostname = spec.hostname.as_bytes();
    if !(1..=63).contains(&hostname.len())
        || !hostname
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte))
    {
        return Err(Error::spec(
            "hostname",
            "must be 1 to 63 letters, digits, '-' and '.'",
        ));
    }
    if !(1..=MAX_BOOT).contains(&spec.boot_timeout_ms) {
        return Err(Error::spec(
            "boot_timeout_ms",
            format!("must be 1 to {MAX_BOOT}"),
        ));
    }
    if spec.probe_limit_ms.is_some_and(|limit| limit > MAX_BOOT) {
        return Err(Error::spec(
            "probe_limit_ms",
            format!("must be at most {MAX_BOOT}"),
        ));
    }
    if spec.time_limit_ms == Some(0) {
        return Err(Error::spec("time_limit_ms", "must not be 0"));
    }
    if spec.capture_limit > MAX_CAPTURE {
        return Err(Error::spec(
            "capture_limit",
            format!("must be at most {MAX_CAPTURE}"),
        ));
    }
    if let Some(workload) = &spec.workload
        && (spec.owned || workload.role != ExecRole::Workload)
    {
        return Err(Error::spec(
            "workload",
            "must have the role workload, and is for a machine without an owner",
        ));
    }
    if spec.memory.0 == 0 {
        return Err(Error::spec("memory", "must not be 0"));
    }
    wiring::validate(spec)
}

fn absolute(field: &'static str, path: &Path) -> Result<fs::Metadata, Error> {
    if !path.is_absolute() {
        return Err(Error::spec(
            field,
            format!("{} is not an absolute path", path.display()),
        ));
    }
    fs::metadata(path)
        .map_err(|error| Error::spec(field, format!("{} cannot be used: {error}", path.display())))
}

fn directory(field: &'static str, path: &Path) -> Result<(), Error> {
    if absolute(field, path)?.is_dir() {
        Ok(())
    } else {
        Err(Error::spec(
            field,
            format!("{} is not a directory", path.display()),
        ))
    }
}

fn file(field: &'static str, path: &Path) -> Result<(), Error> {
    if absolute(field, path)?.is_file() {
        Ok(())
    } else {
        Err(Error::spec(
            field,
            format!("{} is not a regular file", path.display()),
        ))
    }
}

fn private(field: &'static str, path: &Path) -> Result<(), Error> {
    let meta = fs::symlink_metadata(path).map_err(Error::file("look at", path))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !ours || meta.permissions().mode() & 0o077 != 0 {
        return Err(Error::spec(
            field,
            format!(
                "{} must be a directory of this user with mode 0700, not a link",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Makes the machine's own directory.
pub(crate) fn make_place(runtime_dir: &Path) -> Result<(), Error> {
    let place = runtime_dir.join(MACHINE_DIRECTORY);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&place)
        .map_err(Error::file("create", &place))
}

/// Removes it, with all that a VMM may have left there.
pub(crate) fn remove_place(runtime_dir: &Path) {
    let place = runtime_dir.join(MACHINE_DIRECTORY);
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", place.display());
        }
        _ => {}
    }
}

/// A supervisor that listens and has not launched its machine yet.
pub(crate) struct Supervisor {
    engine: Engine,
    first: std::collections::VecDeque<Action>,
    outbox: Sender<Message>,
    launched: Launched,
    runtime: Runtime,
    journal: Journal,
    sessions: Sessions,
    clients: Clients,
    crew: Crew,
    serving: UnixStream,
    launched_at: Instant,
}

impl Supervisor {
    /// Opens the history and binds the control socket. `launcher` is the
    /// launching process as a pidfd, for an owned machine.
    pub(crate) fn prepare(
        spec: LaunchSpec,
        chosen: Chosen,
        wiring: Wiring,
        launcher: Option<OwnedFd>,
        launched_at: Instant,
    ) -> Result<Self, Error> {
        let runtime = Runtime {
            directory: spec.runtime_dir.clone(),
        };
        let supervisor = process::identity(std::process::id())?;
        let (journal, last) = Journal::open(&spec.directory)?;
        bury(&journal, last);
        // Of the boot before.
        link::unlink(&spec.directory.join("result.json"));
        let socket = spec.runtime_dir.join(CONTROL_SOCKET);
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen at", &socket))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
            .map_err(Error::file("protect", &socket))?;
        let launched = Launched {
            socket,
            supervisor: supervisor.clone(),
        };
        let (crew, sessions, clients) = (Crew::default(), Sessions::default(), Clients::default());
        let owner_gone = Arc::new(AtomicBool::new(false));
        let last_status = Arc::default();
        let (owned, capture_limit) = (spec.owned, spec.capture_limit);
        let workload = spec.workload.clone();
        let (engine, outbox, first) = Engine::new(Setup {
            spec,
            hypervisor: chosen.hypervisor,
            reason: chosen.reason,
            supervisor,
            journal: journal.clone(),
            sessions: sessions.clone(),
            wiring: wiring.clone(),
            crew: crew.clone(),
            owner_gone: Arc::clone(&owner_gone),
            last_status: Arc::clone(&last_status),
            launched_at,
        });
        // It may wait long after the machine ended: nobody waits for it.
        let watchers = Crew::default();
        let owner = match launcher {
            Some(pidfd) => Owner::launcher(outbox.clone(), owner_gone, pidfd, &watchers),
            None => Ok(Owner::nobody(outbox.clone(), owner_gone)),
        }
        .map_err(Error::system("start a thread"))?;
        let hub = Hub {
            outbox: outbox.clone(),
            sessions: sessions.clone(),
            wiring,
            proofs: Proofs::default(),
            journal: journal.clone(),
            owner,
            last_status,
            owned,
            capture_limit,
            crew: crew.clone(),
            clients: clients.clone(),
        };
        let (serving, watched) =
            UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
        if let Some(workload) = workload {
            control::start_workload(workload, &hub).map_err(Error::system("start a thread"))?;
        }
        crew.spawn("control", move || {
            control::serve(&listener, &watched, &hub);
        })
        .map_err(Error::system("start a thread"))?;
        Ok(Self {
            engine,
            first,
            outbox,
            launched,
            runtime,
            journal,
            sessions,
            clients,
            crew,
            serving,
            launched_at,
        })
    }

    /// Where it listens.
    pub(crate) fn launched(&self) -> &Launched {
        &self.launched
    }

    /// Tells the machine's lifecycle something.
    pub(crate) fn outbox(&self) -> Sender<Message> {
        self.outbox.clone()
    }

    /// Runs the machine to its end and removes what was made for it. Must be
    /// called by a thread that lives as long: the VMM dies with it.
    pub(crate) fn run(self) -> Over {
        let over = self.engine.run(self.first);
        // A machine may end before whoever launched it had time to connect.
        if !over.abandoned {
            self.journal.wait_followed(self.launched_at + GREETING);
        }
        // Nobody new, then everybody's last words, then the door.
        drop(self.serving);
        self.sessions.close();
        self.journal.close();
        self.clients.hang_up(Shutdown::Read);
        if !self.crew.wait_idle(FAREWELL) {
            tracing::warn!("a client did not read its last words in time");
            self.clients.hang_up(Shutdown::Both);
        }
        drop(self.runtime);
        over
    }
}

/// A supervisor that was killed could not record its machine's end; the
/// machine died with it.
fn bury(journal: &Journal, last: State) {
    let state = match last {
        State::Prepared | State::Halted | State::Stopped | State::Failed => return,
        State::Starting | State::Running | State::Paused => State::Failed,
        State::Quarantined => State::Stopped,
    };
    journal.record(
        state,
        EventKind::Ended {
            cause: EndCause::VmmDied,
            detail: Some(
                "the supervisor ended without a record, and its machine with it".to_owned(),
            ),
            ms: 0,
        },
    );
    journal.boot_starts_here();
}

/// Removes the runtime directory and the sockets in it when dropped.
struct Runtime {
    directory: std::path::PathBuf,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        remove_place(&self.directory);
        let clear = || -> std::io::Result<()> {
            for entry in fs::read_dir(&self.directory)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                // Only what a supervisor or a driver leaves there.
                if kind.is_socket() || kind.is_file() {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_dir(&self.directory)
        };
        if let Err(error) = clear() {
            tracing::warn!("cannot remove {}: {error}", self.directory.display());
        }
        if let Some(parent) = self.directory.parent() {
            // Only the last machine finds it empty.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Ends the machine on `SIGTERM` and `SIGINT`; outlives a hang-up.
pub(crate) fn heed_signals(outbox: Sender<Message>) -> Result<(), Error> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(Error::system("handle signals"))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    continue;
                }
                // An engine that is gone is ending already.
                let _ = outbox.send(Message::Happened(Input::Stop { grace_ms: 2_000 }));
            }
        })
        .map_err(Error::system("start a thread"))?;
    Ok(())
}
