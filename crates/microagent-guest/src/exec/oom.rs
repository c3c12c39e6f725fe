//! How often the kernel killed a process for lack of memory.

use std::{fs::File, os::unix::fs::FileExt};

use microagent_protocol::exec::{ExitReport, ExitStatus, StartFailure};

/// The kernel's counter, kept open for as long as somebody inside may unmount `/proc`.
#[derive(Debug)]
pub(crate) struct OomCounter(Option<File>);

impl OomCounter {
    /// The counter of this machine. Without one nothing is counted.
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/vmstat").ok())
    }

    /// Counts from now on.
    pub(crate) fn watch(&self) -> OomWatch<'_> {
        OomWatch {
            counter: self,
            before: self.read(),
        }
    }

    fn read(&self) -> u64 {
        let mut buffer = [0; 16 * 1024];
        let read = self
            .0
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
        ExitReport {
            // It has ended, so there is one.
            status: status
                .cloned()
                .unwrap_or_else(|| ExitStatus::FailedToStart {
                    reason: StartFailure::Guest,
                    message: "its end was not seen".to_owned(),
                }),
            oom_kills: self.counter.read().saturating_sub(self.before),
        }
    }
}

/// Looks from the end, where newer counters are, and at bytes: this is done twice for every process.
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
