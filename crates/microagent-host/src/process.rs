//! Processes: a handle on another one, groups of them, and who we are.

#[cfg(any(target_os = "macos", test))]
mod apple;

use std::{io, process::Command, time::Instant};

#[cfg(target_os = "macos")]
pub use self::apple::ProcessHandle;

/// A handle on one process, never on a later one with its number.
#[cfg(not(target_os = "macos"))]
#[derive(Debug)]
pub struct ProcessHandle {
    #[cfg(target_os = "linux")]
    fd: std::os::fd::OwnedFd,
    #[cfg(not(target_os = "linux"))]
    never: std::convert::Infallible,
}

#[cfg(target_os = "linux")]
impl ProcessHandle {
    /// Of the process that has this number now.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is gone.
    pub fn open(pid: u32) -> io::Result<Self> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Self { fd }),
            Err(rustix::io::Errno::SRCH) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end; false if it did not come in time.
    ///
    /// # Errors
    /// The system's.
    pub fn ended_by(&self, deadline: Instant) -> io::Result<bool> {
        readable_by(&self.fd, deadline)
    }

    /// Ends it at once, without a chance to clean up.
    ///
    /// # Errors
    /// The system's, if it has ended for one.
    pub fn kill(&self) -> io::Result<()> {
        let signal = rustix::process::Signal::KILL;
        Ok(rustix::process::pidfd_send_signal(&self.fd, signal)?)
    }

    /// A descriptor that becomes readable when it ends.
    #[must_use]
    pub fn into_fd(self) -> std::os::fd::OwnedFd {
        self.fd
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
impl ProcessHandle {
    /// Of the process that has this number now.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] on this system.
    pub fn open(_pid: u32) -> io::Result<Self> {
        Err(crate::unsupported("watching another process"))
    }

    /// Waits for its end; false if it did not come in time.
    ///
    /// # Errors
    /// The system's.
    pub fn ended_by(&self, _deadline: Instant) -> io::Result<bool> {
        match self.never {}
    }

    /// Ends it at once, without a chance to clean up.
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&self) -> io::Result<()> {
        match self.never {}
    }

    /// A descriptor that becomes readable when it ends.
    #[cfg(unix)]
    #[must_use]
    pub fn into_fd(self) -> std::os::fd::OwnedFd {
        match self.never {}
    }
}

/// Whether `fd` has something to read, or has ended, before the deadline.
///
/// # Errors
/// The system's.
#[cfg(unix)]
pub fn readable_by(fd: &impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::time::Duration;

    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timespec = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()) as _,
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec)) {
            Ok(0) if left > Duration::ZERO => {}
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a pipe has something to read before the deadline.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`]: pipes of this system cannot be waited for like that.
#[cfg(windows)]
pub fn readable_by(
    _pipe: &impl std::os::windows::io::AsHandle,
    _deadline: Instant,
) -> io::Result<bool> {
    Err(crate::unsupported(
        "waiting for another program with a deadline",
    ))
}

/// The user this process acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(Option<u32>);

impl User {
    /// Now.
    #[must_use]
    pub fn current() -> Self {
        #[cfg(unix)]
        {
            Self(Some(rustix::process::geteuid().as_raw()))
        }
        #[cfg(not(unix))]
        {
            Self(None)
        }
    }

    /// The owner of a file; unknown where the system does not say.
    #[must_use]
    pub fn owner_of(metadata: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        {
            Self(Some(std::os::unix::fs::MetadataExt::uid(metadata)))
        }
        #[cfg(not(unix))]
        {
            let _ = metadata;
            Self(None)
        }
    }

    /// Whether it may do everything; false where there is no such user.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.0 == Some(0)
    }

    /// Its number, where users have numbers.
    #[must_use]
    pub fn number(self) -> Option<u32> {
        self.0
    }
}

/// Makes the program the first of a group, so that [`kill_group`] ends what it starts, too.
pub fn in_own_group(command: &mut Command) -> &mut Command {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command
}

/// Ends the program `pid` and everything that is still in its group.
///
/// # Errors
/// The system's; [`io::ErrorKind::Unsupported`] where there are no groups.
pub fn kill_group(pid: u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process_group};
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let group = group.ok_or(io::ErrorKind::NotFound)?;
        Ok(kill_process_group(group, Signal::KILL)?)
    }
    #[cfg(not(unix))]
    {
        let _ = pid;
        Err(crate::unsupported("ending a group of processes"))
    }
}

/// When the process that has this number now was started, in clock ticks since the host's boot
/// (field 22 of `/proc/<pid>/stat`, proc(5)): with [`boot_id`], it is told from all others that
/// ever had the number. On macOS it is the second of its start, as a number.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if it is gone, [`io::ErrorKind::Unsupported`] where the system does
/// not say.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read(&path)?;
        field_22(&stat).ok_or_else(|| {
            let what = format!("{path} has no start time");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }
    #[cfg(target_os = "macos")]
    {
        apple::start_number(pid)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = pid;
        Err(crate::unsupported("telling when a process was started"))
    }
}

#[cfg(target_os = "linux")]
fn field_22(stat: &[u8]) -> Option<u64> {
    // The name in parentheses may hold anything; field 3 follows the last one.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Which boot of the host this is.
///
/// # Errors
/// The system's; [`io::ErrorKind::Unsupported`] where it does not say.
pub fn boot_id() -> io::Result<String> {
    #[cfg(target_os = "linux")]
    {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        match id.trim() {
            "" => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this host gives its boot no name",
            )),
            id => Ok(id.to_owned()),
        }
    }
    #[cfg(target_os = "macos")]
    {
        apple::boot_name()
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        Err(crate::unsupported("telling one boot from another"))
    }
}

/// The most physical memory that this process had at a time since it began, in bytes.
///
/// # Errors
/// The system's; [`io::ErrorKind::Unsupported`] where it does not count that.
pub fn peak_memory() -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status")?;
        high_water(&status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
    #[cfg(not(target_os = "linux"))]
    {
        Err(crate::unsupported("telling how much memory it had"))
    }
}

/// `VmHWM` of a `/proc/PID/status`, in bytes.
#[cfg(target_os = "linux")]
fn high_water(status: &str) -> Option<u64> {
    let rest = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The release of the Linux kernel this host runs, such as `6.1.0-32-cloud-amd64`.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where the kernel is another one.
pub fn linux_release() -> io::Result<String> {
    #[cfg(target_os = "linux")]
    {
        Ok(rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned())
    }
    #[cfg(not(target_os = "linux"))]
    {
        Err(crate::unsupported("taking the host's own kernel"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_handle_sees_the_end_and_brings_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap();
        assert!(!handle.ended_by(Instant::now()).unwrap());
        handle.kill().unwrap();
        assert!(
            handle
                .ended_by(Instant::now() + Duration::from_secs(20))
                .unwrap()
        );
        child.wait().unwrap();
        assert!(handle.kill().is_err());
        let gone = ProcessHandle::open(child.id()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_group_ends_with_its_children() {
        let mut child = in_own_group(Command::new("sh").args(["-c", "sleep 60 & echo; wait"]))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let soon = || Instant::now() + Duration::from_secs(20);
        assert!(readable_by(&output, soon()).unwrap());
        kill_group(child.id()).unwrap();
        child.wait().unwrap();
        // Both ends of the pipe are closed only when both are gone.
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut { output }, &mut rest).unwrap();
        assert_eq!(rest, b"\n");
    }

    #[test]
    fn a_process_is_told_by_when_it_was_started() {
        let own = start_ticks(std::process::id()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(start_ticks(child.id()).unwrap() >= own);
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = start_ticks(child.id()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(boot_id().unwrap().len(), 36);
        let awkward = format!("7 (a) b) R {} 4711 0", "0 ".repeat(18).trim());
        assert_eq!(field_22(awkward.as_bytes()), Some(4711));
        assert_eq!(field_22(b"7 (a) R"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_most_memory_is_told_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      12 kB\n";
        assert_eq!(high_water(status), Some(2 << 20));
        assert_eq!(high_water("Name:\tzombie\n"), None);
        assert_eq!(high_water("VmHWM:\tmuch kB\n"), None);
        let before = peak_memory().unwrap();
        let taken = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_memory().unwrap() >= before.max(taken.len() as u64));
    }

    #[test]
    fn we_own_what_we_make() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(User::owner_of(&file.metadata().unwrap()), User::current());
    }
}
