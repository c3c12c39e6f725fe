//! From a plan to a process: bear it, become it, and learn exactly what failed.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr::null,
};

use microagent_protocol::StartFailure;
use rustix::process::{WaitOptions, waitpid};

use super::{offspring, plan::Plan};
use crate::{
    MOST_FILES,
    cgroup::Workloads,
    error::{Context, Error},
    reaper::{Child, Processes},
};

/// The soft limit of open files a process starts with, as distributions set it.
const SOFT_FILES: libc::rlim_t = 1024;

/// The standard streams of a process, on its side.
#[derive(Debug)]
pub(crate) struct Stdio {
    /// Standard input, output and error.
    pub(crate) streams: [OwnedFd; 3],
    /// Whether they are a terminal, which the process then controls.
    pub(crate) terminal: bool,
}

/// The null device, for reading.
pub(crate) fn null_device() -> Result<OwnedFd, Error> {
    open_null(OpenOptions::new().read(true))
}

/// The null device, for writing.
pub(crate) fn null_sink() -> Result<OwnedFd, Error> {
    open_null(OpenOptions::new().write(true))
}

fn open_null(options: &OpenOptions) -> Result<OwnedFd, Error> {
    let file = options.open("/dev/null").context("open /dev/null")?;
    Ok(file.into())
}

/// Starts `plan` in a session of its own, in the control group `group`.
pub(crate) fn spawn(
    plan: &Plan,
    stdio: &Stdio,
    group: Option<&Workloads>,
    processes: &Processes,
) -> Result<Child, Error> {
    let mut newborn = Newborn {
        plan,
        pointers: Pointers::new(plan),
        stdio,
        members: None,
        failure: None,
    };
    processes.start(|| {
        let mut started = newborn.start(group);
        if let (Err(error), Some(group)) = (&started, group)
            && offspring::may_join_later(error)
        {
            newborn.members = Some(group.members());
            started = newborn.start(None);
        }
        let pid = started.map_err(|error| {
            Error::start(
                StartFailure::Guest,
                format!("the guest cannot start another process: {error}"),
            )
        })?;
        let Some((step, errno)) = newborn.failure else {
            // It went away without a word: the program runs.
            return Ok(pid);
        };
        // It has exited; nobody else may see it.
        let _ = waitpid(Some(pid), WaitOptions::empty());
        Err(explain(plan, step, errno))
    })
}

/// What the child needs to become what was planned, and where it leaves word if it cannot.
struct Newborn<'a> {
    plan: &'a Plan,
    pointers: Pointers,
    stdio: &'a Stdio,
    /// Where it joins its control group, if it is not born into it.
    members: Option<RawFd>,
    /// The step that failed, and why.
    failure: Option<(c_int, c_int)>,
}

impl Newborn<'_> {
    fn start(&mut self, group: Option<&Workloads>) -> io::Result<rustix::process::Pid> {
        let argument = (&raw mut *self).cast();
        // SAFETY: `become_it` keeps to what is allowed there, and this value lives through the call.
        unsafe { offspring::start(group.map(Workloads::folder), become_it, argument) }
    }
}

/// The steps of the child that can fail, as they are reported.
mod step {
    use std::ffi::c_int;

    pub(super) const SETUP: c_int = 1;
    pub(super) const CWD: c_int = 2;
    pub(super) const USER: c_int = 3;
    pub(super) const EXEC: c_int = 4;
}

fn explain(plan: &Plan, step: c_int, errno: c_int) -> Error {
    let error = io::Error::from_raw_os_error(errno);
    let program = &plan.program;
    match step {
        step::CWD => Error::start(
            StartFailure::BadWorkdir,
            format!(
                "the working directory {:?} cannot be entered: {error}",
                plan.cwd
            ),
        ),
        step::EXEC => {
            let (reason, message) = explain_exec(plan, errno);
            Error::start(reason, message)
        }
        step::USER => Error::start(
            StartFailure::Guest,
            format!("cannot become the user {}: {error}", plan.identity.uid),
        ),
        _ => Error::start(
            StartFailure::Guest,
            format!("cannot prepare the process {program:?}: {error}"),
        ),
    }
}

fn explain_exec(plan: &Plan, errno: c_int) -> (StartFailure, String) {
    let program = &plan.program;
    let there = || plan.candidates.iter().any(|path| exists(plan, path));
    match errno {
        libc::ENOENT | libc::ENOTDIR if there() => (
            StartFailure::NotExecutable,
            format!(
                "{program:?} is there, but the interpreter or loader it names is not in the image"
            ),
        ),
        libc::ENOENT | libc::ENOTDIR if program.contains('/') => (
            StartFailure::NotFound,
            format!("{program:?} is not in the image"),
        ),
        libc::ENOENT | libc::ENOTDIR => (
            StartFailure::NotFound,
            format!("{program:?} is in no directory of PATH in the image"),
        ),
        libc::ENOEXEC => (
            StartFailure::NotExecutable,
            format!("{program:?} is no program of this machine's kind (exec format error)"),
        ),
        libc::EAGAIN | libc::ENOMEM | libc::ENFILE | libc::EMFILE => (
            StartFailure::Guest,
            format!(
                "the guest cannot start {program:?}: {}",
                io::Error::from_raw_os_error(errno)
            ),
        ),
        _ => (
            StartFailure::NotExecutable,
            format!(
                "{program:?} cannot be executed: {}",
                io::Error::from_raw_os_error(errno)
            ),
        ),
    }
}

fn exists(plan: &Plan, candidate: &CString) -> bool {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};
    let path = |text: &CString| OsStr::from_bytes(text.to_bytes()).to_owned();
    // A dangling link is not there.
    Path::new(&path(&plan.cwd)).join(path(candidate)).exists()
}

/// The arrays `execve` takes, made before there is a child.
struct Pointers {
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

impl Pointers {
    fn new(plan: &Plan) -> Self {
        let list = |texts: &[CString]| {
            texts
                .iter()
                .map(|text| text.as_ptr())
                .chain([null()])
                .collect()
        };
        Self {
            argv: list(&plan.argv),
            env: list(&plan.env),
        }
    }
}

/// Runs in the child, on the agent's memory, where other threads' locks may be held for ever: plain
/// system calls only, no allocation, no panic.
///
/// # Safety
/// `newborn` must be a [`Newborn`] that nobody else touches until the child is gone from this memory.
unsafe extern "C" fn become_it(newborn: *mut c_void) -> ! {
    // SAFETY: the caller's promise.
    let newborn = unsafe { &mut *newborn.cast::<Newborn<'_>>() };
    let step = match prepare(newborn.plan, newborn.stdio, newborn.members) {
        Err(step) => step,
        Ok(()) => {
            execute(newborn.plan, &newborn.pointers);
            step::EXEC
        }
    };
    // SAFETY: reading errno, which is the suspended caller's, and leaving at once.
    unsafe {
        newborn.failure = Some((step, *libc::__errno_location()));
        libc::_exit(127)
    }
}

fn prepare(plan: &Plan, stdio: &Stdio, members: Option<RawFd>) -> Result<(), c_int> {
    let check = |result: c_int, step: c_int| if result < 0 { Err(step) } else { Ok(()) };
    let identity = &plan.identity;
    // SAFETY: all of them are plain system calls on numbers, on descriptors
    // that stay open, and on buffers that live through the call. The set*id
    // calls are raw because the library's would involve the other threads.
    unsafe {
        check(libc::setsid(), step::SETUP)?;
        for (number, stream) in stdio.streams.iter().enumerate() {
            // Never equal: the agent's own standard streams are open.
            check(libc::dup2(stream.as_raw_fd(), number as c_int), step::SETUP)?;
        }
        if stdio.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0), step::SETUP)?;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::umask(0o022);
        if let Some(members) = members {
            check(
                libc::write(members, c"0".as_ptr().cast(), 1) as c_int,
                step::SETUP,
            )?;
        }
        // The hard limit is the agent's own.
        let files = libc::rlimit {
            rlim_cur: SOFT_FILES,
            rlim_max: MOST_FILES,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        check(libc::chdir(plan.cwd.as_ptr()), step::CWD)?;
        // The agent is root in no other group: for such a process there is nothing to change.
        if identity.is_other_than_root() {
            let call = |result: libc::c_long| check(result as c_int, step::USER);
            call(libc::syscall(
                libc::SYS_setgroups,
                identity.groups.len(),
                identity.groups.as_ptr(),
            ))?;
            call(libc::syscall(libc::SYS_setgid, identity.gid))?;
            call(libc::syscall(libc::SYS_setuid, identity.uid))?;
        }
        // Everything is close-on-exec already; this holds it even if something slips.
        libc::syscall(
            libc::SYS_close_range,
            3,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    Ok(())
}

/// Tries the candidates in order, by the rules of `execvp` but for its habit
/// of handing anything that is no program to a shell. Returns with errno set.
fn execute(plan: &Plan, pointers: &Pointers) {
    let mut denied = false;
    // SAFETY: the arrays end with a null pointer and point to strings that
    // live as long as the plan; errno is the suspended caller's.
    unsafe {
        *libc::__errno_location() = libc::ENOENT;
        for path in &plan.candidates {
            libc::execve(path.as_ptr(), pointers.argv.as_ptr(), pointers.env.as_ptr());
            match *libc::__errno_location() {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR => {}
                _ => return,
            }
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
    }
}
