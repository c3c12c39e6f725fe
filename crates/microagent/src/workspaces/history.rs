//! `events.jsonl`: everything that happened to a workspace, one JSON object a line.
//!
//! A crash of the host may leave half a line at the end; it was never acknowledged and is passed
//! over. A line that is no event is counted as damage, and hides none of the others.
//!
//! Past 1 MiB a supervisor replaces the file by one without its middle: then the numbers jump.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
    time::SystemTime,
};

use microagent_host::{
    fs::Private,
    lock::{Lock, Sharing},
};
use microagent_protocol::{
    EndCause, State, Timestamp,
    supervisor::{Event, EventKind, MACHINE_LOCK},
};

use super::machine;
use crate::error::{Error, IoContext, Result};

/// The history's file.
pub(crate) const EVENTS: &str = "events.jsonl";

/// A longer line is damage, in bytes.
const MAX_LINE: u64 = 4 << 20;

/// How much of the end is looked at for the last event, in bytes.
const TAIL: u64 = 64 << 10;

/// What is recorded of a workspace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// How many lines were no events.
    pub damaged_lines: u64,
}

/// Reads the whole history in `directory`.
pub(crate) fn read(directory: &Path) -> Result<History> {
    let path = directory.join(EVENTS);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(History::default()),
        Err(source) => {
            return Err(Error::Io {
                doing: "open",
                path,
                source,
            });
        }
    };
    let mut reader = BufReader::new(file);
    let mut history = History::default();
    loop {
        match next_line(&mut reader).context("read", &path)? {
            None => return Ok(history),
            Some(line) => match serde_json::from_slice(&line) {
                Ok(event) => history.events.push(event),
                Err(_) => history.damaged_lines += 1,
            },
        }
    }
}

/// The next whole line without its end; `None` at the end or before half a line.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let count = reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line));
    }
    if count as u64 == MAX_LINE {
        // Nothing of it is used; the rest of it is passed over.
        reader.skip_until(b'\n')?;
        return Ok(Some(Vec::new()));
    }
    Ok(None)
}

/// The last event in `directory`, if there is one.
pub(crate) fn last(directory: &Path) -> Result<Option<Event>> {
    let path = directory.join(EVENTS);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Io {
                doing: "open",
                path,
                source,
            });
        }
    };
    let length = file.metadata().context("look at", &path)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .context("read", &path)?;
    let mut tail = Vec::new();
    file.take(TAIL)
        .read_to_end(&mut tail)
        .context("read", &path)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let found = tail[..whole]
        .split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| serde_json::from_slice(line).ok());
    match found {
        Some(event) => Ok(Some(event)),
        None if length > TAIL => Ok(read(directory)?.events.pop()),
        None => Ok(None),
    }
}

/// Why the last machine of the workspace in `directory` ended, if it did.
pub(crate) fn end_cause(directory: &Path) -> Result<Option<EndCause>> {
    Ok(last(directory)?.and_then(|event| match event.kind {
        EventKind::Ended { cause, .. } => Some(cause),
        _ => None,
    }))
}

/// The state of the workspace in `directory`, by its record and by whether its machine lives; and
/// whether the record is behind.
pub(crate) fn state(directory: &Path) -> Result<(State, bool)> {
    let mut record = last(directory)?;
    loop {
        // After the record: a machine that begins in between is seen as it was.
        let live = machine::is_live(directory);
        let recorded = record.as_ref().map_or(State::Prepared, |event| event.state);
        return Ok(match (recorded.is_live(), live) {
            // Its supervisor has not recorded anything yet, or is on its way out.
            (false, true) if recorded == State::Prepared => (State::Starting, false),
            (true, false) => {
                // One that ended in between recorded it before it let go.
                let now = last(directory)?;
                if now != record {
                    record = now;
                    continue;
                }
                (after_loss(recorded), true)
            }
            _ => (recorded, false),
        });
    }
}

/// Where a machine is whose supervisor is gone without a record.
const fn after_loss(recorded: State) -> State {
    match recorded {
        State::Quarantined => State::Stopped,
        _ => State::Failed,
    }
}

/// Records the end of a machine whose supervisor could not. Where nothing can be written nothing
/// is: the next reader sees the same.
pub(crate) fn bury(directory: &Path) {
    if let Err(error) = try_bury(directory) {
        tracing::debug!("the end of a machine is not recorded: {error}");
    }
}

fn try_bury(directory: &Path) -> Result<()> {
    let lock_path = directory.join(MACHINE_LOCK);
    let file = File::open(&lock_path).context("open", &lock_path)?;
    let Some(_lock) = Lock::now(file, Sharing::Exclusive).context("lock", &lock_path)? else {
        return Ok(()); // Somebody is at it: a new machine, or another reader.
    };
    let Some(event) = last(directory)?.filter(|event| event.state.is_live()) else {
        return Ok(());
    };
    let path = directory.join(EVENTS);
    let ended = Event {
        sequence: event.sequence + 1,
        at: Timestamp(SystemTime::now()),
        state: after_loss(event.state),
        kind: EventKind::Ended {
            cause: EndCause::VmmDied,
            detail: Some(
                "the supervisor ended without a record, and its machine with it".to_owned(),
            ),
            ms: 0,
        },
    };
    let mut line = serde_json::to_vec(&ended)
        .map_err(io::Error::from)
        .context("describe", &path)?;
    line.push(b'\n');
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .private()
        .open(&path)
        .context("open", &path)?;
    cut_torn_line(&mut file).context("repair", &path)?;
    file.write_all(&line).context("append to", &path)?;
    file.sync_data().context("sync", &path)
}

/// Half a line at the end must not swallow the next one.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut tail)?;
    let whole = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    file.set_len(start + whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, state: State) -> Vec<u8> {
        let event = Event {
            sequence,
            at: Timestamp(SystemTime::UNIX_EPOCH),
            state,
            kind: EventKind::Paused,
        };
        let mut line = serde_json::to_vec(&event).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn half_a_line_is_passed_over_and_a_bad_one_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(EVENTS);
        let whole = [event(1, State::Starting), event(2, State::Running)].concat();
        let first = event(1, State::Starting).len();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let history = read(directory.path()).unwrap();
            let expected = usize::from(cut >= first) + usize::from(cut == whole.len());
            assert_eq!(history.events.len(), expected, "{cut}");
            assert_eq!(history.damaged_lines, 0);
            assert_eq!(
                last(directory.path()).unwrap(),
                history.events.last().cloned()
            );
        }
        let damaged = [
            event(1, State::Starting),
            b"{\n".to_vec(),
            event(3, State::Halted),
        ]
        .concat();
        std::fs::write(&path, damaged).unwrap();
        let history = read(directory.path()).unwrap();
        assert_eq!((history.events.len(), history.damaged_lines), (2, 1));
    }

    #[test]
    fn a_machine_that_is_gone_is_buried_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(EVENTS);
        std::fs::write(directory.path().join(MACHINE_LOCK), "").unwrap();
        let torn = [
            event(1, State::Starting),
            event(2, State::Running),
            b"{\"seq".to_vec(),
        ]
        .concat();
        std::fs::write(&path, torn).unwrap();
        assert_eq!(state(directory.path()).unwrap(), (State::Failed, true));
        bury(directory.path());
        bury(directory.path());
        let history = read(directory.path()).unwrap();
        assert_eq!(history.events.len(), 3);
        assert_eq!(history.events[2].sequence, 3);
        assert_eq!(state(directory.path()).unwrap(), (State::Failed, false));
    }

    #[test]
    fn a_machine_that_lives_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::create(directory.path().join(MACHINE_LOCK)).unwrap();
        let _machine = Lock::now(lock, Sharing::Exclusive).unwrap().unwrap();
        assert_eq!(state(directory.path()).unwrap(), (State::Starting, false));
        std::fs::write(directory.path().join(EVENTS), event(1, State::Running)).unwrap();
        assert_eq!(state(directory.path()).unwrap(), (State::Running, false));
        bury(directory.path());
        assert_eq!(read(directory.path()).unwrap().events.len(), 1);
    }
}
