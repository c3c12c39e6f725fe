//! How a VMM's process comes to be: one clone into its namespaces, then, in the child, everything
//! that holds it back, then exec. Nothing of it happens after the program's first instruction.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Gid, Pid, PidfdFlags, Signal, Uid, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
    },
};

use super::close_all_but;
use crate::{
    confine::{
        Seal,
        jail::{Failed, Jail, Step},
        last_errno,
    },
    network::tap,
};

/// A program and its arguments.
pub(super) struct Words {
    program: CString,
    arguments: Vec<CString>,
}

/// A program to be born.
pub(super) struct Birth {
    /// Its standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Descriptors it inherits under their present numbers.
    pub keep: Vec<RawFd>,
    /// Where it sends the other side of the tap it makes, if it is to make one.
    pub tap: Option<UnixStream>,
}

/// A child that executes its program.
pub(super) struct Born {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Stillborn {
    /// The kernel refused to make the process with these namespaces.
    Clone(Errno),
    /// The child could not do this to itself.
    Step(Step, Errno),
    /// It could not be prepared or heard.
    System(io::Error),
}

impl Stillborn {
    /// Whether it may go better without a jail.
    pub(super) const fn is_of_the_jail(&self) -> bool {
        match self {
            Self::Clone(_) => true,
            Self::Step(step, _) => step.of_the_jail(),
            Self::System(_) => false,
        }
    }
}

impl std::fmt::Display for Stillborn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clone(errno) => write!(f, "this host gives it no namespaces ({errno})"),
            Self::Step(step, errno) => write!(f, "it could not {} ({errno})", step.what()),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl Words {
    pub(super) fn new(program: &Path, arguments: &[impl AsRef<OsStr>]) -> io::Result<Self> {
        let text = |word: &OsStr| {
            CString::new(word.as_bytes())
                .map_err(|_| io::Error::other("an argument has a NUL byte in it"))
        };
        let mut words = vec![text(program.as_os_str())?];
        // A link to it need not be there in its root.
        let program = text(std::fs::canonicalize(program)?.as_os_str())?;
        for argument in arguments {
            words.push(text(argument.as_ref())?);
        }
        Ok(Self {
            program,
            arguments: words,
        })
    }
}

impl Birth {
    /// Makes the process, and returns once it executes its program. The calling thread must live
    /// as long as it: the kernel ends the child with that thread.
    pub(super) fn bear(&self, words: &Words, seal: &mut Seal) -> Result<Born, Stillborn> {
        let (heard, report) = io::pipe().map_err(Stillborn::System)?;
        let parent = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|errno| Stillborn::System(errno.into()))?;
        let pointers: Vec<*const libc::c_char> = words
            .arguments
            .iter()
            .map(|word| word.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        let flags = seal.jail.as_ref().map_or(0, Jail::flags);
        if let Some(anchor) = &seal.anchor {
            anchor.enter().map_err(Stillborn::Clone)?;
        }
        let made = match flags {
            // Containers often know no clone3, and then there are no namespaces to be had either.
            0 => fork(),
            flags => clone(flags),
        };
        if let Some(anchor) = seal.anchor.as_ref().filter(|_| !matches!(made, Ok(None)))
            && let Err(error) = anchor.step_back()
        {
            tracing::error!(%error, "this thread's children are born beside a VMM");
        }
        let Some((pid, pidfd)) = made.map_err(Stillborn::Clone)? else {
            // The child: from here on only system calls on what was made before.
            let failed = match self.prepare(seal, parent.as_fd()) {
                Ok(()) => (Step::Exec, execute(&words.program, &pointers)),
                Err(failed) => failed,
            };
            say(report.as_fd(), failed);
            leave();
        };
        drop(report);
        match hear(heard) {
            Ok(None) => Ok(Born { pid, pidfd }),
            outcome => {
                // It says why and ends; nothing is left of it.
                let flags = WaitIdOptions::EXITED;
                if let Err(error) = waitid(WaitId::PidFd(pidfd.as_fd()), flags) {
                    tracing::error!(%error, "a child that failed could not be reaped");
                }
                Err(match outcome {
                    Ok(Some((step, errno))) => Stillborn::Step(step, errno),
                    Ok(None) => Stillborn::System(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => Stillborn::System(error),
                })
            }
        }
    }

    /// Everything the child does to itself.
    fn prepare(&self, seal: &mut Seal, parent: BorrowedFd<'_>) -> Result<(), Failed> {
        let at = |step: Step| move |errno: Errno| (step, errno);
        default_signals().map_err(at(Step::Prepare))?;
        rustix::process::setsid().map_err(at(Step::Prepare))?;
        let [input, output, error] = &self.stdio;
        rustix::stdio::dup2_stdin(input)
            .and_then(|()| rustix::stdio::dup2_stdout(output))
            .and_then(|()| rustix::stdio::dup2_stderr(error))
            .map_err(at(Step::Prepare))?;
        let user = seal.anchor.as_ref().map(|anchor| anchor.user);
        if let Some(user) = user {
            // It opens it by name, for what it has to say of itself.
            let (owner, group) = (Uid::from_raw(user), Gid::from_raw(user));
            rustix::fs::fchown(error, Some(owner), Some(group)).map_err(at(Step::Prepare))?;
        }
        match &mut seal.jail {
            Some(jail) => {
                jail.map_user()?;
                if let Some(channel) = &self.tap {
                    let user = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
                    tap::make(channel.as_fd(), user).map_err(at(Step::Tap))?;
                }
                jail.enter()?;
            }
            None => rustix::process::chdir(c"/").map_err(at(Step::Prepare))?,
        }
        seal.apply()?;
        close_all_but(&self.keep).map_err(at(Step::Bind))?;
        // Late, because a change of credentials clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(at(Step::Bind))?;
        // A parent that ended before that is seen here. Its number would say nothing: in a PID
        // namespace every parent outside is 0.
        let mut fds = [PollFd::from_borrowed_fd(parent, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => Ok(()),
            Ok(_) => Err((Step::Bind, Errno::SRCH)),
            Err(errno) => Err((Step::Bind, errno)),
        }
    }
}

/// `/dev/null`, to read.
pub(super) fn nothing() -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .map(OwnedFd::from)
}

/// clone3(2) like fork: `None` in the child, its number and pidfd in the parent.
#[allow(unsafe_code)]
pub(crate) fn clone(namespaces: u64) -> Result<Option<(u32, OwnedFd)>, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero bytes are valid arguments: no flags, no addresses.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM the child has a copy of this memory, and like after fork(2) in a
    // program with threads it only makes system calls until it executes or ends: `bear` calls
    // nothing that takes a lock or allocates. The structure outlives the call, and the kernel
    // writes one descriptor to the address in it.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match u32::try_from(pid) {
        Ok(0) => Ok(None),
        // SAFETY: the kernel made this descriptor for us just now, and nobody else has it.
        Ok(pid) => Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
        Err(_) => Err(last_errno()),
    }
}

/// fork(2): `None` in the child, its number and pidfd in the parent.
#[allow(unsafe_code)]
fn fork() -> Result<Option<(u32, OwnedFd)>, Errno> {
    // SAFETY: as in `clone`, the child only makes system calls until it executes or ends.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(last_errno());
    }
    let Some(child) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    match pidfd_open(child, PidfdFlags::empty()) {
        // It is not reaped before this, so its number is still its own.
        Ok(pidfd) => Ok(Some((pid.cast_unsigned(), pidfd))),
        Err(errno) => {
            // Without a pidfd it cannot be watched.
            let ended = kill_process(child, Signal::KILL)
                .and_then(|()| waitid(WaitId::Pid(child), WaitIdOptions::EXITED));
            if let Err(error) = ended {
                tracing::error!(%error, "a child that cannot be watched could not be ended");
            }
            Err(errno)
        }
    }
}

/// Undoes what a Rust program does to its signals.
#[allow(unsafe_code)]
fn default_signals() -> Result<(), Errno> {
    // SAFETY: the set is filled before it is used, and SIGPIPE gets the default action.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        let failed =
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if failed != 0 {
            return Err(Errno::from_raw_os_error(failed));
        }
        if libc::signal(libc::SIGPIPE, libc::SIG_DFL) == libc::SIG_ERR {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// execve(2) with an empty environment; returns only if it fails.
#[allow(unsafe_code)]
fn execute(program: &CStr, arguments: &[*const libc::c_char]) -> Errno {
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both lists end with a null pointer, and the strings in them outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    last_errno()
}

/// Ends the child without running anything of the parent's that it has a copy of.
#[allow(unsafe_code)]
pub(crate) fn leave() -> ! {
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(127) }
}

/// Tells the parent what failed.
fn say(report: BorrowedFd<'_>, (step, errno): Failed) {
    let mut word = [step as u8; 5];
    word[1..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // The parent takes silence for success; there is nobody else to tell.
    let _ = rustix::io::write(report, &word);
}

/// What failed in the child; nothing once it executes its program, which closes the pipe.
fn hear(report: io::PipeReader) -> io::Result<Option<Failed>> {
    let mut words = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(report, 64), &mut words)?;
    match &words[..] {
        [] => Ok(None),
        [step, a, b, c, d] => {
            let errno = Errno::from_raw_os_error(i32::from_ne_bytes([*a, *b, *c, *d]));
            Ok(Some((Step::of(*step).unwrap_or(Step::Prepare), errno)))
        }
        _ => Err(io::Error::other("a child spoke out of turn")),
    }
}
