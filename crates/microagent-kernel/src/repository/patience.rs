//! How long a server is waited for: one that sends a byte now and then is no better than one that is silent.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// How long the server of a repository is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long it may say nothing. The beginning of an answer may take twice as long.
    pub silence: Duration,
    /// How many bytes of a file it must send in each [`silence`](Self::silence), until the file ends.
    pub least: u64,
    /// How long all lists together may take: they are small.
    pub lists: Duration,
    /// How long the kernel may take.
    pub kernel: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            least: 30 * 1024,
            lists: Duration::from_secs(300),
            kernel: Duration::from_secs(1800),
        }
    }
}

/// A file that comes fast enough, or fails.
pub(super) struct Paced<R> {
    file: R,
    patience: Patience,
    /// When it has to be there.
    deadline: Instant,
    since: Instant,
    /// What came since.
    came: u64,
}

impl<R> Paced<R> {
    pub(super) fn new(file: R, patience: Patience, deadline: Instant) -> Self {
        Self {
            file,
            patience,
            deadline,
            since: Instant::now(),
            came: 0,
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 {
            return Ok(0);
        }
        self.came = self.came.saturating_add(read as u64);
        let now = Instant::now();
        if now > self.deadline {
            return Err(too_late());
        }
        let Patience { silence, least, .. } = self.patience;
        if now.duration_since(self.since) >= silence {
            if self.came < least {
                let reason = format!(
                    "it is too slow: {} bytes came in {:.1} s, and {least} were the least",
                    self.came,
                    now.duration_since(self.since).as_secs_f64()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            (self.since, self.came) = (now, 0);
        }
        Ok(read)
    }
}

/// What is told of a file that did not end in time.
pub(super) fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not end in time")
}
