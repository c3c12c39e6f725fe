//! Where a console's output goes: a log that cannot grow without bound (two files, the older
//! one replaced when the newer one is full), and whoever listens. Knows nothing of guests.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::OFlags,
    net::{SendFlags, send},
};

use crate::{ConsoleSpec, Error, SerialPort};

/// Below this a log holds nothing worth reading.
const LEAST_LIMIT: u64 = 4096;

/// An append-only log of at most `limit` bytes, with one predecessor beside it.
#[derive(Debug)]
pub(crate) struct RotatingLog {
    path: PathBuf,
    older: PathBuf,
    limit: u64,
    file: File,
    written: u64,
}

impl RotatingLog {
    /// Opens or makes the log (0600); what an earlier machine wrote stays and counts.
    pub(crate) fn open(spec: &ConsoleSpec) -> io::Result<Self> {
        let mut older = OsString::from(&spec.log);
        older.push(".1");
        let file = open_append(&spec.log)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: spec.log.clone(),
            older: older.into(),
            limit: spec.limit.max(LEAST_LIMIT),
            file,
            written,
        })
    }

    /// Appends all of `bytes`, changing files wherever one is full.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.limit.saturating_sub(self.written);
            if room == 0 {
                fs::rename(&self.path, &self.older)?;
                self.file = open_append(&self.path)?;
                self.written = 0;
                continue;
            }
            let take = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (now, later) = bytes.split_at(take);
            self.file.write_all(now)?;
            self.written += take as u64;
            bytes = later;
        }
        Ok(())
    }
}

fn open_append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(
            (OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY)
                .bits()
                .cast_signed(),
        )
        .open(path)
}

/// What a console says, on its way to the log and to whoever listens.
pub(crate) struct Record<'l> {
    log: RotatingLog,
    listeners: &'l Listeners,
    /// Bytes the log could not take.
    lost: usize,
}

impl<'l> Record<'l> {
    pub(crate) fn new(log: RotatingLog, listeners: &'l Listeners) -> Self {
        Self {
            log,
            listeners,
            lost: 0,
        }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        // A full disk must not stop the guest: the bytes are lost, the count is told.
        if let Err(error) = self.log.write(bytes) {
            if self.lost == 0 {
                tracing::warn!(%error, "the console log cannot be written");
            }
            self.lost += bytes.len();
        }
        self.listeners.tell(bytes);
    }

    /// There is no more of it.
    pub(crate) fn end(self) {
        if self.lost > 0 {
            tracing::warn!(bytes = self.lost, "console output was lost");
        }
    }
}

/// The most listeners at a time.
const MOST_LISTENERS: usize = 16;

/// Who follows a console's output.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    streams: Vec<UnixStream>,
    /// There is no more output.
    closed: bool,
}

impl Open {
    fn tell(&mut self, bytes: &[u8]) {
        #[cfg(not(target_vendor = "apple"))]
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // Apple's sockets are told once, when they are made.
        #[cfg(target_vendor = "apple")]
        let flags = SendFlags::DONTWAIT;
        self.streams
            .retain(|stream| send(stream, bytes, flags) == Ok(bytes.len()));
    }
}

impl Listeners {
    /// Where the output of now on can be read.
    pub(crate) fn add(&self) -> io::Result<UnixStream> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.closed {
            return Err(io::Error::other("the machine has ended"));
        }
        open.tell(&[]); // Who has left makes room.
        if open.streams.len() >= MOST_LISTENERS {
            return Err(io::Error::other(format!(
                "{MOST_LISTENERS} programs are attached to it already"
            )));
        }
        let (ours, theirs) = UnixStream::pair()?;
        #[cfg(target_vendor = "apple")]
        rustix::net::sockopt::set_socket_nosigpipe(&ours, true)?;
        open.streams.push(ours);
        Ok(theirs)
    }

    /// Both directions of a console: its output of now on, and `console`, its input. `ended` is of its machine.
    pub(crate) fn attach(&self, console: &UnixStream, ended: bool) -> Result<SerialPort, Error> {
        let attached = || -> io::Result<SerialPort> {
            if ended {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the machine has ended",
                ));
            }
            Ok(SerialPort {
                output: self.add()?,
                input: console.try_clone()?,
            })
        };
        attached().map_err(|source| Error::Io {
            context: "attach to the serial console".to_owned(),
            source,
        })
    }

    /// Passes output on. Who cannot take it at once is cut off: the guest waits for nobody.
    pub(crate) fn tell(&self, bytes: &[u8]) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.tell(bytes);
    }

    /// There is no more output.
    pub(crate) fn close(&self) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.closed = true;
        open.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn listeners_hear_everything_from_now_on_or_are_cut_off() {
        let listeners = Listeners::default();
        listeners.tell(b"early");
        let (mut quick, mut slow) = (listeners.add().unwrap(), listeners.add().unwrap());
        let chunk = [7_u8; 4096];
        for _ in 0..1000 {
            listeners.tell(&chunk);
            quick.read_exact(&mut [0; 4096]).unwrap();
        }
        let mut got = Vec::new();
        slow.read_to_end(&mut got).unwrap();
        assert!(!got.is_empty() && got.len() < 1000 * chunk.len());
        listeners.tell(b"late");
        listeners.close();
        let mut rest = String::new();
        quick.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "late");
        assert!(listeners.add().is_err());
    }

    #[test]
    fn a_listener_that_left_makes_room() {
        let listeners = Listeners::default();
        let all: Vec<_> = (0..MOST_LISTENERS)
            .map(|_| listeners.add().unwrap())
            .collect();
        assert!(listeners.add().is_err());
        drop(all);
        assert!(listeners.add().is_ok());
    }

    #[test]
    fn it_keeps_the_newest_bytes_in_two_bounded_files() {
        let dir = tempfile::tempdir().unwrap();
        let spec = ConsoleSpec {
            log: dir.path().join("console.log"),
            limit: 4096,
        };
        let mut log = RotatingLog::open(&spec).unwrap();
        let bytes: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        for chunk in bytes.chunks(777) {
            log.write(chunk).unwrap();
        }
        let mut kept = fs::read(dir.path().join("console.log.1")).unwrap();
        let newest = fs::read(&spec.log).unwrap();
        assert_eq!(kept.len(), 4096);
        assert!(newest.len() <= 4096);
        kept.extend(newest);
        assert_eq!(kept, bytes[bytes.len() - kept.len()..]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn it_goes_on_where_an_earlier_machine_stopped_and_follows_no_link() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let spec = ConsoleSpec {
            log: dir.path().join("c"),
            limit: 4096,
        };
        RotatingLog::open(&spec).unwrap().write(b"one ").unwrap();
        RotatingLog::open(&spec).unwrap().write(b"two").unwrap();
        assert_eq!(fs::read(&spec.log).unwrap(), b"one two");
        let mode = fs::metadata(&spec.log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let link = ConsoleSpec {
            log: dir.path().join("link"),
            limit: 4096,
        };
        std::os::unix::fs::symlink(&spec.log, &link.log).unwrap();
        assert!(RotatingLog::open(&link).is_err());
    }
}
