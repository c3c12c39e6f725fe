//! How often the kernel killed a process for lack of memory.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{Mutex, MutexGuard, PoisonError},
};

use microagent_protocol::exec::{ExitReport, ExitStatus, StartFailure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{SeekFrom, seek},
};

/// The kernel's counter, kept open for as long as somebody inside may unmount `/proc`.
#[derive(Debug)]
pub(crate) struct OomCounter {
    vmstat: Option<File>,
    log: Option<File>,
    /// What was read last.
    known: Mutex<u64>,
}

impl OomCounter {
    /// The counter of this machine. Without one nothing is counted.
    pub(crate) fn open() -> Self {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let counter = Self {
            vmstat: File::open("/proc/vmstat").ok(),
            log: log.ok(),
            known: Mutex::new(0),
        };
        counter.skip_log();
        let known = counter.read();
        *counter.lock() = known;
        counter
    }

    /// Counts from now on.
    pub(crate) fn watch(&self) -> OomWatch<'_> {
        OomWatch {
            counter: self,
            before: self.count(false),
        }
    }

    /// How many there were. The kernel writes of each in its log, so while that says nothing new the
    /// count is known: reading it makes the kernel sum up a hundred others.
    fn count(&self, suspicious: bool) -> u64 {
        let mut known = self.lock();
        if self.log_has_news() || suspicious {
            self.skip_log();
            *known = self.read();
        }
        *known
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a log there may always be some.
    fn log_has_news(&self) -> bool {
        let Some(log) = &self.log else { return true };
        let mut fds = [PollFd::new(log, PollFlags::IN)];
        !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }

    fn skip_log(&self) {
        if let Some(log) = &self.log {
            // Where it does not work there is news for ever, and the count is read each time.
            let _ = seek(log, SeekFrom::End(0));
        }
    }

    fn read(&self) -> u64 {
        let mut buffer = [0; 16 * 1024];
        let read = self
            .vmstat
            .as_ref()
            .and_then(|file| file.read_at(&mut buffer, 0).ok());
        read.and_then(|length| find_oom_kills(&buffer[..length]))
            .unwrap_or(0)
    }
}

/// A count since a moment.
#[derive(Debug)]
pub(crate) struct OomWatch<'a> {
    counter: &'a OomCounter,
    before: u64,
}

impl OomWatch<'_> {
    /// The report on what has just ended with `status`.
    pub(crate) fn report(&self, status: Option<&ExitStatus>) -> ExitReport {
        // A process may be gone before the kernel has written of it.
        let suspicious = !matches!(status, Some(ExitStatus::Exited { code: 0 }));
        ExitReport {
            // It has ended, so there is one.
            status: status
                .cloned()
                .unwrap_or_else(|| ExitStatus::FailedToStart {
                    reason: StartFailure::Guest,
                    message: "its end was not seen".to_owned(),
                }),
            oom_kills: self.counter.count(suspicious).saturating_sub(self.before),
        }
    }
}

/// Looks from the end, where newer counters are, and at bytes.
fn find_oom_kills(vmstat: &[u8]) -> Option<u64> {
    let lines = vmstat.rsplit(|byte| *byte == b'\n');
    let value = lines
        .filter_map(|line| line.strip_prefix(b"oom_kill "))
        .next()?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_found_by_their_whole_name() {
        assert_eq!(
            find_oom_kills(b"nr_free 1\noom_kill_other 3\noom_kill 7\n"),
            Some(7)
        );
        assert_eq!(find_oom_kills(b"nr_free 1\n"), None);
        assert_eq!(find_oom_kills(&[0xff]), None);
    }
}
