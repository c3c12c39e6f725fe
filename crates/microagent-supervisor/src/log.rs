//! The supervisor's own log: bounded lines on standard error, which is `supervisor.log`.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use microagent_protocol::Timestamp;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::text::harmless;

/// The most bytes one supervisor writes.
const BUDGET: u64 = 256 * 1024;

/// A log longer than this is begun anew.
const LONGEST: u64 = 1024 * 1024;

/// Makes room for another boot's log.
pub(crate) fn bound(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.len() > LONGEST => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends this process's tracing events to standard error from here on.
pub(crate) fn start() {
    let log = Log {
        left: AtomicU64::new(BUDGET),
    };
    if tracing::subscriber::set_global_default(log).is_err() {
        tracing::debug!("somebody else writes the log");
    }
}

struct Log {
    left: AtomicU64,
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

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
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
        let length = line.len() as u64;
        let spent = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(length)
            });
        if spent.is_ok() {
            // There is nowhere to say that the log cannot be written.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
