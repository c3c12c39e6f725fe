//! What a workspace's guest wrote to its console, and what its supervisors wrote into their log.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_host::fs::file_id;
use microagent_protocol::{
    Timestamp,
    supervisor::{Event, EventKind},
};

use super::Workspace;
use crate::error::{Error, IoContext, Result};

/// The console's log; a full one is renamed to the same with `.1`.
const LOG: &str = "console.log";

/// The log of the supervisors; a full one is renamed likewise.
const SUPERVISOR_LOG: &str = "supervisor.log";

/// Which part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ConsoleOptions {
    tail: Option<usize>,
    since: Option<Timestamp>,
}

impl ConsoleOptions {
    /// All that is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only the last `lines` lines.
    pub fn tail(mut self, lines: usize) -> Self {
        self.tail = Some(lines);
        self
    }

    /// Only what was written since then. A console keeps no times of its own: that of a line is when
    /// its machine was started and what the guest's kernel says has passed since, true to a second
    /// or two.
    pub fn since(mut self, since: Timestamp) -> Self {
        self.since = Some(since);
        self
    }
}

impl Workspace<'_> {
    /// The console's log, as bytes of the guest, and a way to follow it from there.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn console(&self, options: &ConsoleOptions) -> Result<(Vec<u8>, ConsoleFollower)> {
        let (mut bytes, follower) = whole(self.directory.join(LOG))?;
        if let Some(since) = options.since {
            let boots = boots(&self.history()?.events);
            bytes.drain(..written_before(&bytes, &boots, since));
        }
        if let Some(lines) = options.tail {
            bytes.drain(..before_last(&bytes, lines));
        }
        Ok((bytes, follower))
    }

    /// What the supervisors of its machines wrote down: the newest lines, at most 1 MiB of them, each
    /// with its time. What they write is in [`crate::Config::log`].
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn supervisor_log(&self, options: &ConsoleOptions) -> Result<(Vec<u8>, ConsoleFollower)> {
        let (mut bytes, follower) = whole(self.directory.join(SUPERVISOR_LOG))?;
        if let Some(since) = options.since {
            bytes.drain(..stamped_before(&bytes, since));
        }
        if let Some(lines) = options.tail {
            bytes.drain(..before_last(&bytes, lines));
        }
        Ok((bytes, follower))
    }
}

/// All that is kept of a log, and a way to follow it.
fn whole(path: PathBuf) -> Result<(Vec<u8>, ConsoleFollower)> {
    let mut bytes = Vec::new();
    read_into(&path.with_added_extension("1"), &mut bytes)?;
    let mut follower = ConsoleFollower::new(path);
    bytes.append(&mut follower.read_new()?);
    Ok((bytes, follower))
}

/// How many bytes come before the first line that says it is of `since` or later.
fn stamped_before(bytes: &[u8], since: Timestamp) -> usize {
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let stamp = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let time = std::str::from_utf8(stamp).ok();
        let time = time.and_then(|text| humantime::parse_rfc3339(text).ok());
        if time.is_some_and(|time| time >= since.0) {
            return at;
        }
        at += line.len();
    }
    bytes.len()
}

/// When each machine of a history was started.
fn boots(events: &[Event]) -> Vec<Timestamp> {
    events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::VmmStarted { .. }))
        .map(|event| event.at)
        .collect()
}

/// How many bytes come before the last `lines` lines.
fn before_last(bytes: &[u8], lines: usize) -> usize {
    let ended = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 {
        return bytes.len();
    }
    ended
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(lines - 1)
        .map_or(0, |(at, _)| at + 1)
}

/// How many bytes were written before `since`, as far as the kernels' clocks tell.
fn written_before(bytes: &[u8], boots: &[Timestamp], since: Timestamp) -> usize {
    let lines = || bytes.split_inclusive(|byte| *byte == b'\n');
    // A clock that goes back is another kernel's.
    let kernels = |line: &[u8], last: &mut Option<Duration>| {
        let now = uptime(line);
        let new = now.is_some_and(|now| last.is_none_or(|last| now < last));
        *last = now.or(*last);
        usize::from(new)
    };
    let mut last = None;
    let count: usize = lines().map(|line| kernels(line, &mut last)).sum();
    // The last machine's messages are the last; those of older ones may have been rotated away.
    let boots = &boots[boots.len().saturating_sub(count)..];
    let (mut kernel, mut last, mut at) = (0, None, 0);
    for line in lines() {
        kernel += kernels(line, &mut last);
        let boot = kernel.checked_sub(1).and_then(|kernel| boots.get(kernel));
        if let (Some(boot), Some(passed)) = (boot, uptime(line))
            && boot
                .0
                .checked_add(passed)
                .is_some_and(|time| time >= since.0)
        {
            return at;
        }
        at += line.len();
    }
    bytes.len()
}

/// What the kernel says has passed since its start: `[    1.234567] ...`.
fn uptime(line: &[u8]) -> Option<Duration> {
    let stamp = line.strip_prefix(b"[")?;
    let end = stamp.iter().take(24).position(|byte| *byte == b']')?;
    let text = std::str::from_utf8(&stamp[..end]).ok()?.trim_start();
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn read_into(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_end(bytes).context("read", path)?;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            doing: "open",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads what is added to a log, through its rotations.
#[derive(Debug)]
pub struct ConsoleFollower {
    path: PathBuf,
    file: Option<File>,
}

impl ConsoleFollower {
    /// From the log's beginning.
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// What was added since the last call; empty if nothing was.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_new(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes).context("read", &self.path)?;
        }
        // A full log was renamed: what is under its name now is another file.
        if self.was_replaced()? {
            match File::open(&self.path) {
                Ok(mut file) => {
                    file.read_to_end(&mut bytes).context("read", &self.path)?;
                    self.file = Some(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::Io {
                        doing: "open",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(bytes)
    }

    fn was_replaced(&self) -> Result<bool> {
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let own = file.metadata().context("look at", &self.path)?;
        match std::fs::metadata(&self.path) {
            Ok(named) => Ok(file_id(&named) != file_id(&own)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io {
                doing: "look at",
                path: self.path.clone(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\n\n\n", 2, "\n\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
        ] {
            let from = before_last(text.as_bytes(), lines);
            assert_eq!(&text[from..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn lines_are_as_old_as_the_kernel_says() {
        let at =
            |seconds| Timestamp(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let log = "[    0.300000] first\n[   10.000000] old\nno stamp\n\
                   [    0.300000] first\n[    5.500000] x\nand more\n[  100.000000] y\n";
        let since = |seconds, boots: &[Timestamp]| {
            &log[written_before(log.as_bytes(), boots, at(seconds))..]
        };
        let boots = [at(10), at(100), at(1000)];
        // The first machine's messages are gone.
        assert_eq!(since(0, &boots), log);
        assert_eq!(since(105, &boots), &log[log.find("[   10.0").unwrap()..]);
        assert_eq!(since(1000, &boots), &log[log.rfind("[    0.3").unwrap()..]);
        assert_eq!(since(1005, &boots), &log[log.find("[    5.5").unwrap()..]);
        assert_eq!(since(1099, &boots), "[  100.000000] y\n");
        assert_eq!(since(1200, &boots), "");
        assert_eq!(since(0, &[]), "", "nothing says when it was");
    }

    #[test]
    fn a_supervisors_lines_have_their_times() {
        let log = "no stamp\n2026-01-31T12:00:00.000Z INFO a: b\n\
                   2026-01-31T12:00:01.000Z WARN c: d\ne\n";
        let since = |text: &str| {
            let time = Timestamp(humantime::parse_rfc3339(text).unwrap());
            &log[stamped_before(log.as_bytes(), time)..]
        };
        assert_eq!(since("2026-01-31T12:00:00Z"), &log[9..]);
        assert_eq!(
            since("2026-01-31T12:00:00.5Z"),
            &log[log.find("2026-01-31T12:00:01").unwrap()..]
        );
        assert_eq!(since("2027-01-01T00:00:00Z"), "");
    }

    #[test]
    fn a_follower_goes_through_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        let mut follower = ConsoleFollower::new(path.clone());
        assert_eq!(follower.read_new().unwrap(), b"");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(follower.read_new().unwrap(), b"one\n");
        let mut old = File::options().append(true).open(&path).unwrap();
        io::Write::write_all(&mut old, b"two\n").unwrap();
        std::fs::rename(&path, path.with_added_extension("1")).unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(follower.read_new().unwrap(), b"two\nthree\n");
    }
}
