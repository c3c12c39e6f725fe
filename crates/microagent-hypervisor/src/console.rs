//! A console log that cannot grow without bound: two files, the older one
//! replaced when the newer one is full. Knows nothing of guests.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use rustix::fs::OFlags;

use crate::ConsoleSpec;

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

#[cfg(test)]
mod tests {
    use super::*;

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
