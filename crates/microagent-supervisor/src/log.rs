//! The supervisor's own log: lines on standard error, which is `supervisor.log`. A full file is
//! renamed to the same with `.1`, so that the last words are always there.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use microagent_protocol::{LogFilter, LogLevel, Timestamp};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{files, text::harmless};

/// The most bytes of one file. There are two of them.
const LONGEST: u64 = 512 * 1024;

/// Opens the log at `path`, to be added to.
pub(crate) fn open(path: &Path) -> io::Result<LogFile> {
    LogFile::open(path, LONGEST)
}

/// Sends this process's tracing events to `file`, which standard error must be already.
pub(crate) fn start(file: LogFile, filter: Option<LogFilter>) {
    let log = Log {
        filter: filter.unwrap_or_else(|| LogFilter::all(LogLevel::Info)),
        file: Mutex::new(file),
    };
    if tracing::subscriber::set_global_default(log).is_err() {
        tracing::debug!("somebody else writes the log");
    }
}

/// A file that makes room for itself.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    longest: u64,
}

impl LogFile {
    fn open(path: &Path, longest: u64) -> io::Result<Self> {
        let file = files::append(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            longest,
        })
    }

    /// Adds a line; gives whether it went into another file than the one before.
    fn add(&mut self, line: &[u8]) -> io::Result<bool> {
        let full = self.length + line.len() as u64 > self.longest && self.length > 0;
        if full {
            fs::rename(&self.path, self.path.with_added_extension("1"))?;
            *self = Self::open(&self.path, self.longest)?;
        }
        self.file.write_all(line)?;
        self.length += line.len() as u64;
        Ok(full)
    }
}

struct Log {
    filter: LogFilter,
    file: Mutex<LogFile>,
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && self
                .filter
                .wants(metadata.target(), level(*metadata.level()))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let mut line = format!(
            "{} {} {}:{}",
            Timestamp(SystemTime::now()),
            event.metadata().level(),
            event.metadata().target(),
            harmless(&fields.0, 4_000).replace('\n', "\\n"),
        );
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere to say that the log cannot be written.
        if let Ok(true) = file.add(line.as_bytes()) {
            // What a panic says goes where the rest goes.
            let _ = rustix::stdio::dup2_stderr(&file.file);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_what_was_said_last_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("supervisor.log");
        fs::write(&path, "of the boot before\n").unwrap();
        let mut log = LogFile::open(&path, 64).unwrap();
        let moved: Vec<bool> = (0..100)
            .map(|number| log.add(format!("line {number}\n").as_bytes()).unwrap())
            .collect();
        assert!(moved.contains(&true) && !moved[0]);
        let older = fs::read_to_string(path.with_added_extension("1")).unwrap();
        let now = fs::read_to_string(&path).unwrap();
        assert!(older.len() <= 64 && now.len() <= 64, "{older}{now}");
        assert!(format!("{older}{now}").ends_with("line 98\nline 99\n"));
        // A line that is longer than a file is still said.
        assert!(log.add(&[b'x'; 100]).unwrap());
        // What cannot be put aside is not written for ever.
        drop(directory);
        assert!(log.add(b"more\n").is_err());
    }
}
