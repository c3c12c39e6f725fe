//! Children: every process ends up here, watched ones deliver their status to
//! their session, orphans are only buried. Signals that ask for power-off come
//! in here too, as PID 1 gets both by signal.

use std::{
    collections::BTreeMap,
    io,
    mem::zeroed,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::ExitStatus;
use rustix::{
    event::{EventfdFlags, eventfd},
    process::{
        Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, WaitStatus, pidfd_open,
        waitid, waitpid,
    },
};

use crate::{
    control::Event,
    error::{Context, Error},
};

/// What systemd-like `poweroff`, `reboot` and `halt` send, after the names of busybox and sysvinit.
const REALTIME_POWER: std::ops::RangeInclusive<i32> = 3..=6;

/// The end of one watched process.
#[derive(Debug)]
pub(crate) struct Exit {
    status: OnceLock<ExitStatus>,
    event: ExitEvent,
}

/// What tells of an end.
#[derive(Debug)]
enum ExitEvent {
    /// The process itself, readable once it may be buried.
    Process(OwnedFd),
    /// A kernel older than 5.3 has nothing to wait for a process by: whoever buries it counts here.
    Counter(OwnedFd),
}

impl Exit {
    /// How it ended, if it has.
    pub(crate) fn status(&self) -> Option<&ExitStatus> {
        self.status.get()
    }

    /// Readable once it has ended; [`Processes::has_ended`] says how then.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        match &self.event {
            ExitEvent::Process(fd) | ExitEvent::Counter(fd) => fd.as_fd(),
        }
    }
}

/// A started process.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    /// Its process number, which is its session's and its group's too.
    pub(crate) pid: Pid,
    /// Its end.
    pub(crate) exit: Arc<Exit>,
}

/// The workload, as far as ending it goes.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Its process.
    pub(crate) child: Child,
    /// The signal that asks it to end.
    pub(crate) stop_signal: i32,
}

/// The watched processes.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    /// Held while a process is started, which takes as long as whatever its directory and program lie
    /// on, and for ever in a control group that was frozen.
    state: Mutex<State>,
    workload: Mutex<Option<Workload>>,
}

#[derive(Debug, Default)]
struct State {
    /// By process number.
    watched: BTreeMap<i32, Arc<Exit>>,
}

/// How often it is looked whether a process is still being started.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Processes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process by `fork` and watches it. Nothing is reaped meanwhile,
    /// so it cannot end unseen between the two.
    pub(crate) fn start(&self, fork: impl FnOnce() -> Result<Pid, Error>) -> Result<Child, Error> {
        let mut state = self.lock();
        let pid = fork()?;
        let event = exit_event(pid).inspect_err(|_| {
            // SAFETY: no pointers; nobody has reaped it, so the number is its own. A process that
            // nobody could wait for is none.
            unsafe { libc::kill(-number(pid), libc::SIGKILL) };
        })?;
        let exit = Arc::new(Exit {
            status: OnceLock::new(),
            event,
        });
        state.watched.insert(number(pid), Arc::clone(&exit));
        Ok(Child { pid, exit })
    }

    /// Whether `child` has ended: its status is known then. Whoever waits for it need not wait for
    /// the reaper's turn as well, nor for the burial, which takes the kernel longer than a look.
    pub(crate) fn has_ended(&self, child: &Child) -> bool {
        if child.exit.status().is_none() {
            let state = self.lock();
            // Until it is buried the number is its own.
            if child.exit.status().is_none() {
                state.look(child.pid);
            }
        }
        child.exit.status().is_some()
    }

    /// Buries `child` if it has ended and nobody has done so yet.
    pub(crate) fn bury(&self, child: &Child) {
        let mut state = self.lock();
        // One that is buried already may have left its number to another.
        if state.is_watched(child) {
            state.bury(child.pid);
        }
    }

    /// Sends `signal` to the process's group, if the process has not ended.
    pub(crate) fn signal(&self, child: &Child, signal: i32) {
        self.lock().signal(child, signal);
    }

    /// The same by `deadline`; false if a process was being started all the time.
    pub(crate) fn signal_by(&self, deadline: Instant, child: &Child, signal: i32) -> bool {
        loop {
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(LOOK_AGAIN);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return false,
            };
            state.signal(child, signal);
            return true;
        }
    }

    fn workload_lock(&self) -> MutexGuard<'_, Option<Workload>> {
        self.workload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the workload.
    pub(crate) fn set_workload(&self, workload: Workload) {
        *self.workload_lock() = Some(workload);
    }

    /// The workload, unless it has ended.
    pub(crate) fn workload(&self) -> Option<Workload> {
        self.workload_lock()
            .clone()
            .filter(|workload| workload.child.exit.status().is_none())
    }

    /// Buries every process that has ended; the answer is whether any child is left.
    pub(crate) fn reap(&self) -> bool {
        loop {
            let pid = match next_zombie() {
                Ok(Some(pid)) => pid,
                Ok(None) => return true,
                Err(error) => return error.raw_os_error() != Some(libc::ECHILD),
            };
            self.lock().bury(pid);
        }
    }
}

impl State {
    fn is_watched(&self, child: &Child) -> bool {
        let watched = self.watched.get(&number(child.pid));
        watched.is_some_and(|exit| Arc::ptr_eq(exit, &child.exit))
    }

    fn signal(&self, child: &Child, signal: i32) {
        if child.exit.status().is_none() && self.is_watched(child) {
            // SAFETY: no pointers. It is not reaped while the lock is held, so
            // the number is still its own. It may be a zombie: then nobody is hurt.
            unsafe { libc::kill(-number(child.pid), signal) };
        }
    }

    /// Learns how a watched child ended, if it has, and leaves its burial for later.
    fn look(&self, pid: Pid) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if let Some(exit) = self.watched.get(&number(pid))
            && let Ok(Some(seen)) = waitid(WaitId::Pid(pid), options)
        {
            // Set once: nobody has seen it yet.
            let _ = exit.status.set(seen_status(&seen));
        }
    }

    /// Buries a child if it has ended and nobody has done so yet.
    fn bury(&mut self, pid: Pid) {
        if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG)
            && let Some(exit) = self.watched.remove(&number(pid))
        {
            // Whoever looked at it before has seen the same.
            let _ = exit.status.set(exit_status(status));
            if let ExitEvent::Counter(counter) = &exit.event {
                // It takes one more unless somebody wrote 2^64 - 2.
                let _ = rustix::io::write(counter, &1_u64.to_ne_bytes());
            }
        }
    }
}

fn exit_event(pid: Pid) -> Result<ExitEvent, Error> {
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        return Ok(ExitEvent::Process(process));
    }
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let counter = eventfd(0, flags).context("make an event")?;
    Ok(ExitEvent::Counter(counter))
}

fn number(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    ended(status.exit_status(), status.terminating_signal())
}

fn seen_status(status: &WaitIdStatus) -> ExitStatus {
    ended(status.exit_status(), status.terminating_signal())
}

fn ended(code: Option<i32>, signal: Option<i32>) -> ExitStatus {
    let byte = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    match (code, signal) {
        (_, Some(signal)) => ExitStatus::Signaled {
            signal: byte(signal),
        },
        (code, None) => ExitStatus::Exited {
            code: byte(code.unwrap_or(255)),
        },
    }
}

/// Some child that has ended, left as it is.
fn next_zombie() -> io::Result<Option<Pid>> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` lives through the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has filled it in, or left it zero if there is none.
    Ok(Pid::from_raw(unsafe { info.si_pid() }))
}

fn signals() -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid sigset_t, and sigemptyset makes it an empty one.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    let realtime = REALTIME_POWER.map(|number| libc::SIGRTMIN() + number);
    let named = [
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPWR,
    ];
    // SAFETY: `set` lives through the calls, and the numbers are valid.
    unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in named.into_iter().chain(realtime) {
            libc::sigaddset(&raw mut set, signal);
        }
    }
    set
}

/// Keeps the signals for [`start`]. Must be called before any other thread exists.
pub(crate) fn hold_signals() {
    let set = signals();
    // SAFETY: `set` lives through the call; with valid arguments it cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) };
}

/// Reaps from now on, and reports signals that ask for power-off.
pub(crate) fn start(processes: Arc<Processes>, events: Sender<Event>) -> Result<(), Error> {
    thread::Builder::new()
        .name("reaper".to_owned())
        .stack_size(crate::THREAD_STACK)
        .spawn(move || {
            // Whoever waits for a process buries it; this is for those that nobody waits for.
            let _ = rustix::process::nice(10);
            let set = signals();
            loop {
                let mut signal = 0;
                // SAFETY: both live through the call.
                if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                    continue;
                }
                if signal == libc::SIGCHLD {
                    processes.reap();
                } else if events.send(Event::PowerSignal).is_err() {
                    return;
                }
            }
        })
        .context("start the reaper thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::exec::ONE_AT_A_TIME;

    fn started(processes: &Processes, script: &str) -> Child {
        processes
            .start(|| {
                let child = Command::new("/bin/sh")
                    .args(["-c", script])
                    .process_group(0)
                    .stdin(Stdio::null())
                    .spawn()
                    .context("start a shell")?;
                Ok(Pid::from_raw(child.id() as i32).unwrap())
            })
            .unwrap()
    }

    fn wait_for_end(processes: &Processes, child: &Child) {
        while !processes.has_ended(child) {
            std::thread::yield_now();
        }
    }

    /// A process that has ended is there until it is buried.
    fn is_there(child: &Child) -> bool {
        // SAFETY: no pointers, and no signal.
        unsafe { libc::kill(number(child.pid), 0) == 0 }
    }

    #[test]
    fn an_end_is_seen_before_the_burial_and_told_the_same_after_it() {
        let _guard = ONE_AT_A_TIME.lock();
        let processes = Processes::default();
        for (script, status) in [
            ("exit 7", ExitStatus::Exited { code: 7 }),
            ("kill -9 $$", ExitStatus::Signaled { signal: 9 }),
        ] {
            let child = started(&processes, script);
            wait_for_end(&processes, &child);
            assert_eq!(child.exit.status(), Some(&status));
            assert!(is_there(&child));
            processes.bury(&child);
            assert!(!is_there(&child));
            assert_eq!(child.exit.status(), Some(&status));
            // Again is nothing.
            processes.bury(&child);
            assert!(processes.has_ended(&child));
        }
    }

    #[test]
    fn a_start_that_hangs_keeps_nobody_from_ending_the_workload() {
        let _guard = ONE_AT_A_TIME.lock();
        let processes = Processes::default();
        let child = started(&processes, "exec sleep 1000");
        processes.set_workload(Workload {
            child: child.clone(),
            stop_signal: libc::SIGKILL,
        });
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (holding, held) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let processes = &processes;
            scope.spawn(move || {
                let hung = processes.start(|| {
                    holding.send(()).unwrap();
                    gate.recv().unwrap();
                    Err(io::Error::from(io::ErrorKind::TimedOut)).context("start a process")
                });
                assert!(hung.is_err());
            });
            held.recv().unwrap();
            assert!(processes.workload().is_some());
            let soon = || Instant::now() + Duration::from_millis(20);
            assert!(!processes.signal_by(soon(), &child, libc::SIGKILL));
            go.send(()).unwrap();
            let late = Instant::now() + Duration::from_secs(20);
            assert!(processes.signal_by(late, &child, libc::SIGKILL));
        });
        wait_for_end(&processes, &child);
        processes.bury(&child);
    }

    #[test]
    fn what_was_seen_to_end_gets_no_signal_and_is_reaped_by_whoever_comes_first() {
        let _guard = ONE_AT_A_TIME.lock();
        let processes = Processes::default();
        let child = started(&processes, "exit 0");
        processes.bury(&child);
        wait_for_end(&processes, &child);
        processes.signal(&child, libc::SIGKILL);
        processes.reap();
        assert!(!is_there(&child));
        assert_eq!(child.exit.status(), Some(&ExitStatus::Exited { code: 0 }));
    }
}
