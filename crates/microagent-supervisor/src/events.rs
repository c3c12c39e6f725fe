//! The workspace's history: `events.jsonl`, and everybody who follows it.

mod bound;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Instant, SystemTime},
};

use microagent_protocol::{
    FrameKind, State, Timestamp,
    frame::{MAX_JSON, write_frame},
    supervisor::{Event, EventKind},
};

use self::bound::{BOUND, Bound};
use crate::{
    Error,
    crew::{Crew, lock},
    files,
};

/// Its file in the workspace's directory.
pub(crate) const HISTORY: &str = "events.jsonl";

/// Events a subscriber may be behind before it is dropped.
const QUEUE: usize = 256;

/// How much of the file's end is searched for the last whole event.
const TAIL: u64 = 256 * 1024;

/// The recorded history and its followers.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    shared: Arc<Mutex<Inner>>,
    /// Told when the first follower comes.
    followed: Arc<Condvar>,
    path: PathBuf,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// The length up to which the file holds whole lines.
    length: u64,
    /// Where this boot's events start.
    boot_offset: u64,
    /// The length from which the file is made shorter.
    full_at: u64,
    bound: Bound,
    sequence: u64,
    followers: Vec<Follower>,
    next_follower: u64,
    closed: bool,
}

#[derive(Debug)]
struct Follower {
    id: u64,
    queue: SyncSender<Arc<[u8]>>,
    stream: UnixStream,
}

impl Journal {
    /// Opens the history in `directory`, and says in which state it ends.
    /// A torn last line, left by a crash of the host, is cut off.
    pub(crate) fn open(directory: &Path) -> Result<(Self, State), Error> {
        Self::open_bounded(directory, BOUND)
    }

    fn open_bounded(directory: &Path, bound: Bound) -> Result<(Self, State), Error> {
        let path = directory.join(HISTORY);
        if let Err(error) = files::remove_temporary(&path) {
            tracing::warn!("{error}");
        }
        let mut file = files::append(&path).map_err(Error::file("open", &path))?;
        let end = find_end(&mut file).map_err(Error::file("read", &path))?;
        file.set_len(end.length)
            .map_err(Error::file("repair", &path))?;
        let mut inner = Inner {
            file,
            length: end.length,
            boot_offset: end.length,
            full_at: bound.longest,
            bound,
            sequence: end.sequence,
            followers: Vec::new(),
            next_follower: 0,
            closed: false,
        };
        inner.make_room(&path);
        let journal = Self {
            shared: Arc::new(Mutex::new(inner)),
            followed: Arc::default(),
            path,
        };
        Ok((journal, end.state))
    }

    /// What was recorded until now belongs to an earlier boot.
    pub(crate) fn boot_starts_here(&self) {
        let mut inner = lock(&self.shared);
        inner.boot_offset = inner.length;
    }

    /// The last event's number.
    pub(crate) fn sequence(&self) -> u64 {
        lock(&self.shared).sequence
    }

    /// Appends an event and tells everybody. A full disk does not stop the
    /// machine: followers are told all the same, and the log says what failed.
    pub(crate) fn record(&self, state: State, kind: EventKind) {
        let mut inner = lock(&self.shared);
        inner.sequence += 1;
        let event = Event {
            sequence: inner.sequence,
            at: Timestamp(SystemTime::now()),
            state,
            kind,
        };
        let mut line = match serde_json::to_vec(&event) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!("an event could not be written as JSON: {error}");
                return;
            }
        };
        let mut frame = Vec::with_capacity(line.len() + 5);
        if let Err(error) = write_frame(&mut frame, FrameKind::Event, &line) {
            tracing::error!("an event could not be framed: {error}");
            return;
        }
        line.push(b'\n');
        if let Err(error) = inner.append(&line) {
            tracing::error!("cannot append to {}: {error}", self.path.display());
        }
        inner.make_room(&self.path);
        inner.broadcast(&Arc::from(frame));
    }

    /// Makes what was recorded survive a crash of the host.
    pub(crate) fn sync(&self) {
        // The lock is not held meanwhile: a slow disk delays no event.
        let file = lock(&self.shared).file.try_clone();
        if let Err(error) = file.and_then(|file| file.sync_data()) {
            tracing::error!("cannot sync {}: {error}", self.path.display());
        }
    }

    /// Sends this boot's events to `stream`, those recorded already first.
    /// Gives the number to unfollow by.
    pub(crate) fn follow(&self, stream: &UnixStream, crew: &Crew) -> io::Result<u64> {
        let (queue, events) = sync_channel::<Arc<[u8]>>(QUEUE);
        let mut writer = stream.try_clone()?;
        let kept = stream.try_clone()?;
        let (id, history, recorded) = {
            let mut inner = lock(&self.shared);
            // The file as it is now: it may be replaced by a shorter one while it is read.
            let mut history = File::open(&self.path)?;
            history.seek(SeekFrom::Start(inner.boot_offset))?;
            inner.next_follower += 1;
            let id = inner.next_follower;
            // One who comes after the end gets the whole story and no more.
            if !inner.closed {
                inner.followers.push(Follower {
                    id,
                    queue,
                    stream: kept,
                });
            }
            let recorded = inner.length.saturating_sub(inner.boot_offset);
            (id, history, recorded)
        };
        self.followed.notify_all();
        let journal = self.clone();
        let spawned = crew.spawn("events", move || {
            let sent = send_history(history, recorded, &mut writer).and_then(|()| {
                for frame in events {
                    writer.write_all(&frame)?;
                }
                Ok(())
            });
            if let Err(error) = sent {
                tracing::debug!("a subscriber was lost: {error}");
            }
            journal.unfollow(id);
            // Reading stays open: an owner holds the machine by it.
            hang_up(&writer, Shutdown::Write);
        });
        if let Err(error) = spawned {
            self.unfollow(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Forgets a follower.
    pub(crate) fn unfollow(&self, id: u64) {
        lock(&self.shared)
            .followers
            .retain(|follower| follower.id != id);
    }

    /// Waits for somebody to have followed, until `deadline`.
    pub(crate) fn wait_followed(&self, deadline: Instant) {
        let mut inner = lock(&self.shared);
        while inner.next_follower == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self
                .followed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Lets every follower go once it has everything.
    pub(crate) fn close(&self) {
        let mut inner = lock(&self.shared);
        inner.closed = true;
        inner.followers.clear();
    }
}

impl Inner {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(line);
        match written {
            Ok(()) => {
                self.length += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line must not swallow the next one.
                self.file.set_len(self.length)?;
                Err(error)
            }
        }
    }

    /// Replaces a history that is too long by a shorter one. Where that is not possible it goes on
    /// growing for a while: nothing of it is lost.
    fn make_room(&mut self, path: &Path) {
        if self.length <= self.full_at {
            return;
        }
        self.full_at = match self.shorten(path) {
            Ok(()) => self.bound.longest,
            Err(error) => {
                tracing::error!("cannot make {} shorter: {error}", path.display());
                self.length + self.bound.newest
            }
        };
    }

    fn shorten(&mut self, path: &Path) -> Result<(), Error> {
        let shorter = bound::shorten(&self.file, self.length, self.boot_offset, &self.bound)
            .map_err(Error::file("read", path))?;
        let Some(shorter) = shorter else {
            return Ok(());
        };
        // What is added later goes into the file that takes the place, and into no other.
        self.file = files::replace_and_keep(path, &shorter.bytes)?;
        self.length = shorter.bytes.len() as u64;
        self.boot_offset = shorter.boot;
        Ok(())
    }

    fn broadcast(&mut self, frame: &Arc<[u8]>) {
        self.followers.retain(
            |follower| match follower.queue.try_send(Arc::clone(frame)) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    tracing::warn!("a subscriber was too slow and is dropped");
                    hang_up(&follower.stream, Shutdown::Write);
                    false
                }
                Err(TrySendError::Disconnected(_)) => false,
            },
        );
    }
}

/// Ends a direction of a connection; one that ended already is no error.
pub(crate) fn hang_up(stream: &UnixStream, how: Shutdown) {
    if let Err(error) = stream.shutdown(how)
        && error.kind() != io::ErrorKind::NotConnected
    {
        tracing::debug!("a connection could not be shut down: {error}");
    }
}

fn send_history(file: File, length: u64, writer: &mut UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(file.take(length));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() <= MAX_JSON {
            write_frame(writer, FrameKind::Event, &line).map_err(io::Error::other)?;
        }
    }
}

struct End {
    length: u64,
    sequence: u64,
    state: State,
}

fn find_end(file: &mut File) -> io::Result<End> {
    let size = file.metadata()?.len();
    let start = size.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let whole = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let last = tail[..whole]
        .split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| serde_json::from_slice::<Event>(line).ok());
    Ok(End {
        // A tail without any line end is one endless torn line.
        length: start + whole as u64,
        sequence: last.as_ref().map_or(0, |event| event.sequence),
        state: last.map_or(State::Prepared, |event| event.state),
    })
}
