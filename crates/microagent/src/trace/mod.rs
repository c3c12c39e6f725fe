//! Where the time goes, as a file that trace viewers read.
//!
//! The library tells of what it does by spans of `tracing`, one for each phase: `run`, `image`, `pull`,
//! `download`, `import`, `build`, `convert`, `disk`, `kernel`, `initramfs`, `workspace`, `spawn`, `machine`, `artifacts`,
//! `start`, `verify`, `setup`, `exec`. What a machine's supervisor tells becomes phases as well: `vmm`,
//! `kernel`, `agent`, `workload`, `teardown`. A [`Trace`] collects both.

mod machine;

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    filter::FilterFn,
    layer::Context,
    registry::{LookupSpan, Scope},
};

pub(crate) use self::machine::MachinePhases;
use crate::{
    error::{IoContext, Result},
    files::{self, Durability},
};

/// The target of phases that a supervisor told of.
const MACHINE: &str = "microagent::machine";

/// The most phases that are kept; what comes after them is counted.
const MOST: usize = 200_000;

/// Collects phases, and writes them in Chrome's trace event format.
///
/// ```
/// use microagent::trace::Trace;
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let trace = Trace::new();
/// let subscriber = tracing_subscriber::registry().with(trace.layer());
/// tracing::subscriber::with_default(subscriber, || {
///     // What the library does here is in the trace.
/// });
/// # let directory = tempfile::tempdir()?;
/// trace.write(&directory.path().join("trace.json"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Trace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    begun: Instant,
    begun_at: SystemTime,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    phases: Vec<Phase>,
    /// The names of processes and threads.
    names: BTreeSet<(u32, u64, String)>,
    lost: u64,
}

/// One phase, in microseconds since the trace began.
#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    cat: &'static str,
    ph: &'static str,
    ts: i64,
    dur: i64,
    pid: u32,
    tid: u64,
    args: Map<String, Value>,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// One that begins now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                begun: Instant::now(),
                begun_at: SystemTime::now(),
                kept: Mutex::default(),
            }),
        }
    }

    /// What collects, for a registry of `tracing-subscriber`.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let wanted: fn(&Metadata<'_>) -> bool = |it| match it.is_span() {
            true => it.target().starts_with("microagent"),
            false => it.target() == MACHINE,
        };
        Collector(Arc::clone(&self.shared)).with_filter(FilterFn::new(wanted))
    }

    /// Writes what is there so far: whole or not at all, unless `path` is no file but a pipe, say.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = self.shared.document().to_string();
        text.push('\n');
        match fs::metadata(path) {
            Ok(there) if !there.is_file() => fs::write(path, text).context("write", path),
            _ => files::write(path, text.as_bytes(), Durability::Unsynced),
        }
    }
}

impl Shared {
    fn keep(&self, phase: Phase) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.phases.len() < MOST {
            kept.phases.push(phase);
        } else {
            kept.lost += 1;
        }
    }

    fn name(&self, pid: u32, tid: u64, name: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.names.len() < MOST {
            kept.names.insert((pid, tid, name));
        }
    }

    fn document(&self) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events: Vec<Value> = Vec::with_capacity(kept.names.len() + kept.phases.len());
        for (pid, tid, name) in &kept.names {
            let what = match tid {
                0 => "process_name",
                _ => "thread_name",
            };
            events.push(
                json!({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}),
            );
        }
        events.extend(kept.phases.iter().map(|phase| json!(phase)));
        let begun_at = microagent_protocol::Timestamp(self.begun_at);
        json!({
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {
                "version": env!("CARGO_PKG_VERSION"),
                "begun_at": begun_at,
                "lost": kept.lost,
            },
        })
    }

    /// Microseconds from the trace's beginning to an instant of the host's clock.
    fn since_begin(&self, unix_us: u64) -> i64 {
        let begun = self.begun_at.duration_since(SystemTime::UNIX_EPOCH);
        micros(Duration::from_micros(unix_us)) - micros(begun.unwrap_or_default())
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A phase's beginning and length in microseconds. Both ends are rounded, and the length follows: rounded on its own
/// it could reach beyond the phase around it.
fn rounded(from: Duration, to: Duration) -> (i64, i64) {
    let from = micros(from);
    (from, micros(to).saturating_sub(from))
}

/// A number for this thread, from 1.
fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static OWN: Cell<u64> = const { Cell::new(0) };
    }
    OWN.with(|own| {
        if own.get() == 0 {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        own.get()
    })
}

/// The layer.
struct Collector(Arc<Shared>);

/// What a span remembers until it is over.
struct Begun {
    at: Instant,
    thread: u64,
    args: Map<String, Value>,
}

impl<S> Layer<S> for Collector
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let thread = thread();
        let name = std::thread::current().name().map(str::to_owned);
        let name = name.unwrap_or_else(|| format!("thread {thread}"));
        self.0.name(std::process::id(), 0, "microagent".to_owned());
        self.0.name(std::process::id(), thread, name);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Begun {
                at: Instant::now(),
                thread,
                args: fields.0,
            });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(begun) = span.extensions_mut().remove::<Begun>() else {
            return;
        };
        let mut args = begun.args;
        let parents = context
            .span_scope(&id)
            .map_or(1, Scope::count)
            .saturating_sub(1);
        args.insert("depth".to_owned(), Value::from(parents));
        let from = begun.at.saturating_duration_since(self.0.begun);
        let (ts, dur) = rounded(from, self.0.begun.elapsed());
        self.0.keep(Phase {
            name: span.name().to_owned(),
            cat: "microagent",
            ph: "X",
            ts,
            dur,
            pid: std::process::id(),
            tid: begun.thread,
            args,
        });
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields(mut args) = fields;
        let number = |name: &str, args: &Map<String, Value>| args.get(name)?.as_u64();
        let text =
            |name: &str, args: &Map<String, Value>| Some(args.get(name)?.as_str()?.to_owned());
        let (Some(name), Some(workspace), Some(pid), Some(from), Some(took)) = (
            text("phase", &args),
            text("workspace", &args),
            number("vmm", &args).and_then(|pid| u32::try_from(pid).ok()),
            number("from_us", &args),
            number("took_us", &args),
        ) else {
            return;
        };
        args.retain(|name, _| name == "workspace");
        self.0.name(pid, 0, format!("machine {workspace}"));
        self.0.keep(Phase {
            name,
            cat: "machine",
            ph: "X",
            ts: self.0.since_begin(from),
            dur: i64::try_from(took).unwrap_or(i64::MAX),
            pid,
            tid: 0,
            args,
        });
    }
}

/// The fields of a span or an event, as JSON.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }
}

#[cfg(test)]
mod tests;
