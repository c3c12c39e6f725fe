//! QEMU's control channel (QMP): one JSON document a line over a private
//! socket pair. Every line is bounded, every answer has a deadline.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, text::printable};

/// How long the end of a channel that takes no more may take to be read.
const GONE_LIMIT: Duration = Duration::from_secs(1);

/// The longest line that is read.
const LINE_LIMIT: u64 = 256 * 1024;

/// What QEMU says its machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunState {
    /// Its vCPUs are frozen (event `STOP`, undone by `RESUME`).
    pub stopped: bool,
    /// The guest asked for power-off (event `SHUTDOWN`, `guest-shutdown`).
    pub powered_off: bool,
    /// The guest reset itself, as it does after a panic (`guest-reset`).
    pub reset: bool,
}

impl RunState {
    /// Whether the guest ended its machine.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        self.powered_off || self.reset
    }
}

/// The client's end.
pub(super) struct Qmp {
    shared: Arc<Shared>,
    writer: Mutex<Writer>,
    reader: Option<JoinHandle<()>>,
}

struct Writer {
    stream: UnixStream,
    next: u64,
    /// A command was not taken whole: what would come next would be read as a part of it.
    is_torn: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    greeted: bool,
    closed: Option<String>,
    run: RunState,
    /// Answers to commands somebody still waits for.
    answers: HashMap<u64, Option<Result<Value, String>>>,
}

/// Anything QEMU sends. Which it is shows in which field is there.
#[derive(Deserialize)]
struct Incoming {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Option<EventData>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Default, Deserialize)]
struct EventData {
    #[serde(default)]
    reason: Option<String>,
}

impl Qmp {
    /// Takes the channel. Nothing is sent yet.
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reading = stream.try_clone()?;
        let reader_shared = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || {
                let why = read_all(reading, &reader_shared);
                let mut state = reader_shared.lock();
                state.closed = Some(why);
                drop(state);
                reader_shared.changed.notify_all();
            })?;
        Ok(Self {
            shared,
            writer: Mutex::new(Writer {
                stream,
                next: 0,
                is_torn: false,
            }),
            reader: Some(reader),
        })
    }

    /// Waits for QEMU's greeting and answers it, until `deadline`, which is `limit` from when the wait began;
    /// `Ok(false)` if the channel closed first.
    pub(super) fn greet(&self, deadline: Instant, limit: Duration) -> Result<bool, Error> {
        let state = self.shared.lock();
        let state = self.shared.wait_until(state, deadline, |state| {
            state.greeted || state.closed.is_some()
        });
        if state.closed.is_some() {
            return Ok(false);
        }
        if !state.greeted {
            return Err(Error::Timeout {
                what: "QEMU's answer on its control channel".to_owned(),
                limit,
            });
        }
        drop(state);
        let left = deadline.saturating_duration_since(Instant::now());
        match self.execute(
            "accept its control channel",
            "qmp_capabilities",
            &json!({}),
            left,
        ) {
            Ok(_) => Ok(true),
            // One that is gone takes no answer, which may be known before the reader sees why.
            Err(_) if self.closes_within(GONE_LIMIT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn closes_within(&self, limit: Duration) -> bool {
        let state = self.shared.lock();
        let closed = |state: &State| state.closed.is_some();
        self.shared
            .wait_until(state, Instant::now() + limit, closed)
            .closed
            .is_some()
    }

    /// What QEMU said last about its machine.
    pub(super) fn run_state(&self) -> RunState {
        self.shared.lock().run
    }

    /// The same once nothing more can come, or `limit` is over.
    pub(super) fn last_state(&self, limit: Duration) -> RunState {
        let state = self.shared.lock();
        let deadline = Instant::now() + limit;
        let closed = |state: &State| state.closed.is_some();
        self.shared.wait_until(state, deadline, closed).run
    }

    /// Waits until `done` holds for the machine.
    pub(super) fn wait_for(
        &self,
        action: &'static str,
        limit: Duration,
        done: impl Fn(RunState) -> bool,
    ) -> Result<(), Error> {
        let state = self.shared.lock();
        let state = self
            .shared
            .wait_until(state, Instant::now() + limit, |state| {
                done(state.run) || state.closed.is_some()
            });
        if done(state.run) {
            return Ok(());
        }
        Err(Error::Control {
            action,
            reason: state
                .closed
                .clone()
                .unwrap_or_else(|| format!("no word of it within {limit:?}")),
        })
    }

    /// Sends a command and waits for its answer.
    pub(super) fn execute(
        &self,
        action: &'static str,
        command: &str,
        arguments: &Value,
        limit: Duration,
    ) -> Result<Value, Error> {
        let deadline = Instant::now() + limit;
        let fail = |reason: String| Error::Control { action, reason };
        let id = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.is_torn {
                return Err(fail("it did not take an earlier command".to_owned()));
            }
            let id = writer.next;
            writer.next += 1;
            self.shared.lock().answers.insert(id, None);
            let mut line =
                json!({"execute": command, "arguments": arguments, "id": id}).to_string();
            line.push('\n');
            let written = writer
                .stream
                .set_write_timeout(Some(limit.max(Duration::from_millis(1))))
                .and_then(|()| writer.stream.write_all(line.as_bytes()));
            if let Err(error) = written {
                writer.is_torn = true;
                self.shared.lock().answers.remove(&id);
                return Err(fail(error.to_string()));
            }
            id
        };
        let state = self.shared.lock();
        let mut state = self.shared.wait_until(state, deadline, |state| {
            state.closed.is_some() || state.answers.get(&id).is_none_or(Option::is_some)
        });
        match state.answers.remove(&id).flatten() {
            Some(Ok(value)) => Ok(value),
            Some(Err(reason)) => Err(fail(reason)),
            None => Err(fail(
                state
                    .closed
                    .clone()
                    .unwrap_or_else(|| format!("no answer within {limit:?}")),
            )),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only if the other end is gone, and then the reader has ended.
        let _ = writer.stream.shutdown(std::net::Shutdown::Both);
        drop(writer);
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            tracing::error!("the thread that reads QEMU's control channel panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
        done: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.changed
            .wait_timeout_while(state, left, |state| !done(state))
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }
}

/// Reads until the channel ends; says why it did.
fn read_all(stream: UnixStream, shared: &Shared) -> String {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => return "QEMU closed its control channel".to_owned(),
            Ok(_) if line.last() != Some(&b'\n') => {
                return "QEMU's control channel broke off in a line, or the line is too long"
                    .to_owned();
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return format!("QEMU's control channel: {error}"),
        }
        match serde_json::from_slice::<Incoming>(&line) {
            Ok(incoming) => {
                let mut state = shared.lock();
                take_in(&mut state, incoming);
                drop(state);
                shared.changed.notify_all();
            }
            Err(error) => return format!("QEMU's control channel: {error}"),
        }
    }
}

fn take_in(state: &mut State, incoming: Incoming) {
    if incoming.greeting.is_some() {
        state.greeted = true;
    }
    if let Some(event) = incoming.event {
        let reason = incoming.data.and_then(|data| data.reason);
        match event.as_str() {
            "STOP" => state.run.stopped = true,
            "RESUME" => state.run.stopped = false,
            "SHUTDOWN" => match reason.as_deref() {
                Some("guest-reset") => state.run.reset = true,
                Some("guest-shutdown") => state.run.powered_off = true,
                _ => {}
            },
            _ => {}
        }
    }
    let answer = match (incoming.returned, incoming.error) {
        (_, Some(refusal)) => Err(printable(refusal.desc.as_bytes())),
        (Some(value), None) => Ok(value),
        (None, None) => return,
    };
    // An answer nobody waits for any more is dropped, so the map stays small.
    if let Some(place) = incoming.id.and_then(|id| state.answers.get_mut(&id)) {
        *place = Some(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_greets_and_ends_at_once_is_gone() {
        for _ in 0..200 {
            let (here, mut there) = UnixStream::pair().unwrap();
            let qmp = Qmp::new(here).unwrap();
            let ends = std::thread::spawn(move || there.write_all(b"{\"QMP\": {}}\n"));
            let limit = Duration::from_secs(60);
            let greeted = qmp.greet(Instant::now() + limit, limit);
            assert!(matches!(greeted, Ok(false)), "{greeted:?}");
            ends.join().unwrap().unwrap();
        }
    }

    #[test]
    fn nothing_follows_a_command_that_was_not_taken_whole() {
        let (here, there) = UnixStream::pair().unwrap();
        let qmp = Qmp::new(here).unwrap();
        let send = |words: &str, limit| {
            let sent = qmp.execute("test", "test", &json!(words), limit);
            sent.unwrap_err().to_string()
        };
        // More than a socket holds, and nobody reads.
        let long = "x".repeat(16 << 20);
        assert!(!send(&long, Duration::from_millis(50)).contains("earlier"));
        let refused = send("x", Duration::from_secs(60));
        assert!(
            refused.contains("did not take an earlier command"),
            "{refused}"
        );
        drop(there);
    }
}
