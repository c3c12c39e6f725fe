//! The supervisor's own process: identity, session, descriptors, the process that launched it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::Command,
};

use microagent_host::process::{ProcessHandle, boot_id, start_ticks};
use microagent_protocol::ProcessIdentity;

use crate::{Error, files};

/// Which process `pid` is, told from all others before and after it.
pub(crate) fn identity(pid: u32) -> Result<ProcessIdentity, Error> {
    Ok(ProcessIdentity {
        pid,
        start_ticks: start_ticks(pid).map_err(Error::system("tell which process that is"))?,
        boot_id: boot_id().map_err(Error::system("tell which boot this is"))?,
    })
}

/// The second argument of a supervisor that began anew, after [`MARKER`](crate::MARKER); the third is the process
/// that launched it.
const ANEW: &str = "anew";

/// The process that launched this one, if this began anew for it.
pub(crate) fn anew_for() -> Option<u32> {
    let mut arguments = std::env::args_os().skip(1);
    let begins = arguments.next()? == crate::MARKER && arguments.next()? == ANEW;
    let launcher = arguments.next()?;
    begins.then(|| launcher.to_str()?.parse().ok())?
}

/// A descriptor that becomes readable when the process that launched this one ends.
pub(crate) fn launcher(anew_for: Option<u32>) -> Result<OwnedFd, Error> {
    ProcessHandle::open(anew_for.unwrap_or_else(std::os::unix::process::parent_id))
        .map(ProcessHandle::into_fd)
        .map_err(Error::system("watch the launching process"))
}

/// Closes every descriptor but the standard three. Must come before this
/// process opens any: what is closed here belongs to whoever launched it.
pub(crate) fn close_inherited() {
    // SAFETY: called first thing in the process, before any Rust value owns a
    // descriptor above 2; closing those of the launcher breaks no owner.
    #[cfg(target_os = "linux")]
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    // Elsewhere programs are started by `posix_spawn`, which passes on nothing that was not asked for.
    #[cfg(not(target_os = "linux"))]
    let closed = 0;
    if closed != 0 {
        // A kernel before 5.9: the descriptors stay open, which costs the
        // launcher an early end-of-file and nothing else.
        tracing::warn!(
            "inherited descriptors stay open: {}",
            io::Error::last_os_error()
        );
    }
}

/// Descriptors a supervisor may want: its sessions, clients and carried connections.
const WANTED_DESCRIPTORS: u64 = 4_096;

/// Lets this process open as many files as it may want and the hard limit allows; gives how
/// many that are.
pub(crate) fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let wanted = WANTED_DESCRIPTORS.min(limit.maximum.unwrap_or(u64::MAX));
    if current >= wanted {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!("no more than {current} files can be open: {error}");
            current
        }
    }
}

/// What [`detach`] returned as.
pub(crate) enum Side {
    /// The process that was launched: it passes the verdict on and ends.
    Launched(Verdict),
    /// Its child in a session of its own: the supervisor to be.
    Supervisor(Judge),
}

/// Waits for the supervisor's word on whether it came up.
pub(crate) struct Verdict(File);

impl Verdict {
    /// Whether it did; a supervisor that died did not.
    pub(crate) fn wait(mut self) -> bool {
        let mut byte = [0_u8; 1];
        matches!(self.0.read(&mut byte), Ok(1)) && byte == [1]
    }
}

/// Tells the launched process whether the supervisor came up.
pub(crate) struct Judge(File);

impl Judge {
    pub(crate) fn tell(mut self, up: bool) {
        if let Err(error) = self.0.write_all(&[u8::from(up)]) {
            tracing::debug!("the launched process did not wait: {error}");
        }
    }
}

/// Forks; the child leads a new session. Must be called while the process has
/// one thread.
pub(crate) fn detach() -> Result<Side, Error> {
    let (reader, writer) = io::pipe().map_err(Error::system("make a pipe"))?;
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    // SAFETY: the process has one thread (`entry` is called first in `main`),
    // so the child's copy of every lock and allocator state is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(Error::system("fork")(io::Error::last_os_error())),
        0 => {
            drop(reader);
            rustix::process::setsid()
                .map_err(|error| Error::system("start a session")(error.into()))?;
            Ok(Side::Supervisor(Judge(File::from(writer))))
        }
        _ => {
            drop(writer);
            Ok(Side::Launched(Verdict(File::from(reader))))
        }
    }
}

/// Begins this program anew in a session of its own, with the same request and the same standard output. That
/// program tells its verdict on its standard input, which is a socket.
pub(crate) fn begin_anew(request: &[u8]) -> Result<Verdict, Error> {
    let (mut ours, theirs) = UnixStream::pair().map_err(Error::system("make a socket pair"))?;
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let launcher = std::os::unix::process::parent_id().to_string();
    let mut command = Command::new(program);
    command
        .args([crate::MARKER, ANEW, &launcher])
        .stdin(OwnedFd::from(theirs));
    // SAFETY: between fork and exec, and nothing but a system call.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    // It outlives this process; whoever adopts it waits for it.
    command
        .spawn()
        .map_err(Error::system("begin the supervisor's program anew"))?;
    // The other end of the pair is the new program's alone, so that its end is seen.
    drop(command);
    ours.write_all(request)
        .map_err(Error::system("pass the request on"))?;
    Ok(Verdict(File::from(OwnedFd::from(ours))))
}

/// The judge of a supervisor that began anew.
pub(crate) fn judge() -> Result<Judge, Error> {
    io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(|socket| Judge(File::from(socket)))
        .map_err(Error::system("keep the standard input"))
}

/// Where the answer to the launch goes once standard output is a log.
pub(crate) fn take_stdout() -> Result<File, Error> {
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(Error::system("keep the standard output"))
}

/// Turns the standard three into `/dev/null` and the log at `path`.
pub(crate) fn redirect_stdio(path: &Path) -> Result<(), Error> {
    let null = File::open("/dev/null").map_err(Error::file("open", "/dev/null"))?;
    let log = files::append(path).map_err(Error::file("open", path))?;
    let redirect = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&log)?;
        rustix::stdio::dup2_stderr(&log)
    };
    redirect().map_err(|error| Error::system("redirect the standard streams")(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let me = identity(std::process::id()).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(me.start_ticks > 0);
        assert_eq!(me.boot_id.len(), 36);
        assert!(identity(u32::MAX).is_err());
    }
}
