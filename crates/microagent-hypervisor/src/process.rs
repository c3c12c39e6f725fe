//! The VMM as a child process: born confined, bound to this process's life,
//! watched through a pidfd, its last words kept. Knows no VMM by name.

mod birth;
mod pump;

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use microagent_host::process::readable_by;
use microagent_protocol::{
    Confinement, ConfinementLayer, ConfinementMode, MissingLayer, ProcessIdentity,
};
use rustix::{
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use self::birth::{Birth, Born, Words};
pub(crate) use self::birth::{clone, leave};
use self::pump::pump;
use crate::{
    Error, Exit, SerialPort,
    confine::{self, Applied, Seal, Terms, Way, cgroup::Group, jailer::Anchor, last_errno},
    console::{Listeners, Record, RotatingLog},
    identity::identity_of,
    text::printable,
};

/// How long a killed process may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// How long a VMM that runs may take to put its filter of system calls on.
const FILTER_LIMIT: Duration = Duration::from_secs(1);

/// As good as no limit, and no overflow.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What to start.
pub(crate) struct Plan {
    /// The executable, absolute.
    pub program: PathBuf,
    /// Its arguments. Numbers of `descriptors` may be named in them.
    pub arguments: Vec<OsString>,
    /// Descriptors it inherits under their present numbers; no others.
    pub descriptors: Vec<OwnedFd>,
    /// Where it sends the other side of a tap that it makes in its network namespace.
    pub tap: Option<UnixStream>,
    /// What it is kept from.
    pub terms: Terms,
    /// Its end of the console is read here and written to the log.
    pub console: UnixStream,
    /// The other end of the console, where the program has it as standard input and output.
    /// Otherwise its input is empty, and its output counts as its own words.
    pub stdio: Option<UnixStream>,
    /// Where the console goes.
    pub log: RotatingLog,
}

/// A running or ended VMM. Dropping it kills and reaps it.
pub(crate) struct Vmm {
    program: PathBuf,
    identity: ProcessIdentity,
    applied: Applied,
    mode: ConfinementMode,
    /// Gone after it.
    _group: Option<Group>,
    _anchor: Option<Anchor>,
    pidfd: Arc<OwnedFd>,
    exit: Mutex<Option<Exit>>,
    words: Arc<Mutex<VecDeque<u8>>>,
    console: UnixStream,
    listeners: Arc<Listeners>,
    keeper: Option<JoinHandle<()>>,
}

impl Vmm {
    /// Starts it. The thread that forks lives as long as the child, because the
    /// kernel's parent-death signal follows the forking *thread*.
    pub(crate) fn spawn(plan: Plan) -> Result<Self, Error> {
        let program = plan.program.clone();
        let mode = plan.terms.mode;
        let (send, receive) = mpsc::sync_channel(1);
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let keeper_words = Arc::clone(&words);
        let console = plan.console.try_clone().map_err(|source| Error::Io {
            context: "share the serial console".to_owned(),
            source,
        })?;
        let listeners = Arc::<Listeners>::default();
        let told = Arc::clone(&listeners);
        let keeper = std::thread::Builder::new()
            .name("vmm-keeper".to_owned())
            .spawn(move || {
                let (child, console, log) = match fork(plan) {
                    Ok(born) => born,
                    Err(error) => {
                        // The receiver waits for exactly one message; nobody else can be told.
                        let _ = send.send(Err(error));
                        return;
                    }
                };
                let pidfd = Arc::clone(&child.pidfd);
                let kept = (child.group, child.anchor);
                let born = Ok((child.identity, child.applied, kept, pidfd));
                if send.send(born).is_ok() {
                    let record = Record::new(log, &told);
                    pump(&console, record, &child.stderr, &child.pidfd, &keeper_words);
                }
                told.close();
            })
            .map_err(|source| Error::Io {
                context: "start the thread that keeps the VMM".to_owned(),
                source,
            })?;
        let (identity, applied, (group, anchor), pidfd) =
            receive.recv().map_err(|_| Error::VmmStart {
                program: program.clone(),
                reason: "the thread that starts it ended".to_owned(),
            })??;
        Ok(Self {
            program,
            identity,
            applied,
            mode,
            _group: group,
            _anchor: anchor,
            pidfd,
            exit: Mutex::new(None),
            words,
            console,
            listeners,
            keeper: Some(keeper),
        })
    }

    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// What holds it back, as far as that can be seen now.
    pub(crate) fn confinement(&self) -> Confinement {
        self.applied.measure(self.identity.pid)
    }

    /// Once it runs: whether it is held back as its terms demand.
    pub(crate) fn check_confinement(&self) -> Result<(), Error> {
        if self.mode != ConfinementMode::Required {
            return Ok(());
        }
        let deadline = Instant::now() + FILTER_LIMIT;
        loop {
            let found = self.confinement();
            let Some(missing) = found.shortfall() else {
                return Ok(());
            };
            // Firecracker puts its filter on just after it said that the machine runs.
            let only_filter = |gap: &MissingLayer| {
                !gap.layer.is_required() || gap.layer == ConfinementLayer::SystemCalls
            };
            let may_come = found.missing.iter().all(only_filter) && Instant::now() < deadline;
            if !may_come || self.wait(Duration::from_millis(5))?.is_some() {
                return Err(Error::Confinement { missing });
            }
        }
    }

    pub(crate) fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its own last words, made safe to show.
    pub(crate) fn words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = words.iter().copied().collect();
        printable(&bytes)
    }

    /// Another look at its console.
    pub(crate) fn console(&self) -> Result<SerialPort, Error> {
        // Its end may not have reached the thread that reads it yet.
        let ended = self.wait(Duration::ZERO)?.is_some();
        self.listeners.attach(&self.console, ended)
    }

    /// Waits at most `limit` for it to end.
    pub(crate) fn wait(&self, limit: Duration) -> Result<Option<Exit>, Error> {
        let known = *self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return Ok(known);
        }
        let deadline = Instant::now() + limit.min(FOREVER);
        let ended = readable_by(&self.pidfd, deadline).map_err(|source| Error::Io {
            context: format!("wait for {}", self.program.display()),
            source,
        })?;
        if !ended {
            return Ok(None);
        }
        // Whoever comes first reaps; the lock makes the others find the result.
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            let status = waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            )
            .map_err(|errno| Error::Io {
                context: format!("learn how {} ended", self.program.display()),
                source: errno.into(),
            })?;
            *exit = status.map(|status| {
                status.exit_status().map_or_else(
                    || Exit::Signal(status.terminating_signal().unwrap_or_default()),
                    Exit::Code,
                )
            });
        }
        Ok(*exit)
    }

    /// Kills it; a dead one is no error.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::Io {
                context: format!("kill {}", self.program.display()),
                source: errno.into(),
            }),
        }
    }

    /// Kills it and waits until nothing of it is left: no process, and the
    /// console's last bytes in the log.
    pub(crate) fn end(&mut self) {
        if let Err(error) = self.kill() {
            tracing::error!(%error, "the VMM could not be killed");
        }
        match self.wait(REAP_LIMIT) {
            Ok(Some(_)) => {
                if let Some(keeper) = self.keeper.take()
                    && keeper.join().is_err()
                {
                    tracing::error!("the thread that kept the VMM panicked");
                }
            }
            Ok(None) => tracing::error!("the killed VMM is still there"),
            Err(error) => tracing::error!(%error, "the VMM could not be reaped"),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.end();
    }
}

struct Child {
    identity: ProcessIdentity,
    applied: Applied,
    group: Option<Group>,
    anchor: Option<Anchor>,
    pidfd: Arc<OwnedFd>,
    stderr: OwnedFd,
}

fn fork(plan: Plan) -> Result<(Child, UnixStream, RotatingLog), Error> {
    let start_error = |source: &dyn std::fmt::Display| Error::VmmStart {
        program: plan.program.clone(),
        reason: source.to_string(),
    };
    let system = |error: io::Error| start_error(&error);
    let (stderr, stderr_write) = io::pipe().map_err(system)?;
    let stderr_write = OwnedFd::from(stderr_write);
    let (input, output) = match plan.stdio {
        Some(console) => {
            let console = OwnedFd::from(console);
            (console.try_clone().map_err(system)?, console)
        }
        None => (
            birth::nothing().map_err(system)?,
            stderr_write.try_clone().map_err(system)?,
        ),
    };
    let keep: Vec<RawFd> = plan.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let stdio = [input, output, stderr_write];
    let words = Words::new(&plan.program, &plan.arguments).map_err(system)?;
    let birth = Birth {
        stdio,
        keep,
        tap: plan.tap,
    };
    let (born, mut seal) = bear(&birth, &words, &plan.terms, &start_error)?;
    // The write ends must close here, or the keeper would never see the end.
    drop(birth);
    drop(plan.descriptors);
    // The child is not reaped before this, so its number is still its own.
    let identity = match identity_of(born.pid) {
        Ok(identity) => identity,
        Err(error) => {
            abandon(&born);
            return Err(system(error));
        }
    };
    let group = seal.limit(born.pid, &plan.terms);
    let child = Child {
        identity,
        applied: seal.applied,
        group,
        anchor: seal.anchor,
        pidfd: Arc::new(born.pidfd),
        stderr: stderr.into(),
    };
    Ok((child, plan.console, plan.log))
}

/// Starts it as tightly held as this host allows, or as the terms demand.
fn bear(
    birth: &Birth,
    words: &Words,
    terms: &Terms,
    start_error: &dyn Fn(&dyn std::fmt::Display) -> Error,
) -> Result<(Born, Seal), Error> {
    let (mut why, mut no_jailer) = (None, None);
    for way in confine::ways(terms) {
        let mut seal = match Seal::prepare(terms, way) {
            Err(error) if way == Way::Jailer => {
                no_jailer = Some(error.to_string());
                continue;
            }
            prepared => prepared?,
        };
        seal.settle(why.clone(), no_jailer.clone())?;
        if birth.tap.is_some()
            && !seal
                .jail
                .as_ref()
                .is_some_and(confine::jail::Jail::has_network)
        {
            let why = why.unwrap_or_else(|| "confinement was switched off".to_owned());
            return Err(Error::Unsupported(format!(
                "its network needs a network namespace, and there is none: {why}; use the network mode isolated, or the backend qemu"
            )));
        }
        let jailer = terms.jailer.as_ref().filter(|_| way == Way::Jailer);
        let jailer = jailer.map(|jailer| Words::new(&jailer.program, &jailer.arguments));
        let jailer = jailer.transpose().map_err(|error| start_error(&error))?;
        match birth.bear(jailer.as_ref().unwrap_or(words), &mut seal) {
            Ok(born) => return Ok((born, seal)),
            Err(error) if seal.jail.is_some() && error.is_of_the_jail() => {
                tracing::debug!(%error, ?way, "a VMM is started with less confinement");
                match way {
                    Way::Jailer => no_jailer = Some(error.to_string()),
                    // The first one is the one to mend.
                    _ => drop(why.get_or_insert_with(|| error.to_string())),
                }
            }
            Err(error) => return Err(start_error(&error)),
        }
    }
    Err(start_error(&why.unwrap_or_default()))
}

/// Ends a child that cannot be watched.
fn abandon(born: &Born) {
    let ended = pidfd_send_signal(&born.pidfd, Signal::KILL)
        .and_then(|()| waitid(WaitId::PidFd(born.pidfd.as_fd()), WaitIdOptions::EXITED));
    if let Err(error) = ended {
        tracing::error!(%error, "a VMM that cannot be watched could not be ended");
    }
}

/// Binds a helper to the life of the thread that starts it. It inherits these descriptors and its
/// standard ones; what else holds it back it puts on itself.
#[allow(unsafe_code)]
pub(crate) fn born_bound(command: &mut Command, keep: Vec<RawFd>) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::setsid()?;
        close_all_but(&keep)?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(Errno::SRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls on
    // values made before the fork: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// The rest of this process's descriptors, whoever forgot O_CLOEXEC on them, end at the exec.
#[allow(unsafe_code)]
fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    // SAFETY: close_range with CLOEXEC only sets a flag on this process's descriptors.
    let flagged = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if flagged != 0 {
        return Err(last_errno());
    }
    for fd in keep {
        // SAFETY: the parent holds these descriptors until after the fork, so they are open here.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}
