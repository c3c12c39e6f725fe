//! A state directory under attack, and what must be true of it at any time.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Finished, Sandbox, eventually};

/// How long processes may take to notice that one of them is gone.
const SETTLE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    /// The events of each workspace that somebody was told of.
    told: BTreeMap<String, Vec<Value>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            sandbox: Sandbox::own(env!("CARGO_BIN_EXE_microagent")),
            told: BTreeMap::new(),
        }
    }

    /// Runs a command to its end; it may fail, but not by a defect.
    pub(crate) fn ask<const N: usize>(&self, words: [&str; N]) -> Finished {
        let finished = self.sandbox.microagent(words).json().run();
        sound(&finished);
        finished
    }

    /// A process of this world whose executable's name has `name` in it.
    pub(crate) fn a_process(&self, name: &str, at: usize) -> Option<u32> {
        let processes = self.sandbox.leftovers().processes_named(name);
        (!processes.is_empty()).then(|| processes[at % processes.len()])
    }

    /// Holds every invariant, and panics with `what` was done if one does not.
    pub(crate) fn check(&mut self, what: &str) {
        self.no_orphans(what);
        let listed = self.ask(["list"]).success().parsed();
        let rows = listed["workspaces"].as_array().expect("workspaces").clone();
        // One that goes with its run may be going just now.
        let names: Vec<String> = rows
            .iter()
            .filter(|row| row["ephemeral"] != true)
            .map(|row| row["name"].as_str().expect("a name").to_owned())
            .collect();
        self.told.retain(|name, _| names.contains(name));
        for name in names {
            let status = self.ask(["status", &name]);
            assert_eq!(status.code(), 0, "{what}: status {name}: {status}");
            self.events_are_kept(&name, what);
        }
    }

    /// Every VMM has its supervisor, however long that takes to come true.
    fn no_orphans(&self, what: &str) {
        eventually(SETTLE, &format!("the end of orphans after {what}"), || {
            let leftovers = self.sandbox.leftovers();
            let supervisors = leftovers.processes_named("microagent-supervisor");
            leftovers
                .processes_named("qemu-system")
                .into_iter()
                .all(|vmm| parent(vmm).is_none_or(|parent| supervisors.contains(&parent)))
                .then_some(())
        });
    }

    /// What somebody was told of a workspace stays its history.
    fn events_are_kept(&mut self, name: &str, what: &str) {
        let finished = self.ask(["events", name]);
        assert_eq!(finished.code(), 0, "{what}: events {name}: {finished}");
        let events = finished.parsed()["events"]
            .as_array()
            .expect("events")
            .clone();
        let before = self.told.entry(name.to_owned()).or_default();
        assert!(
            events.len() >= before.len() && events[..before.len()] == before[..],
            "{what}: the history of {name} was {before:?} and is {events:?}"
        );
        for (at, event) in events.iter().enumerate() {
            assert_eq!(
                event["sequence"],
                at as u64 + 1,
                "{what}: {name}: {events:?}"
            );
        }
        *before = events;
    }

    /// The workspace is gone on purpose, and its history with it.
    pub(crate) fn forget(&mut self, name: &str) {
        self.told.remove(name);
    }

    /// Removes everything; nothing may be left.
    pub(crate) fn end(self) {
        let listed = self.ask(["list"]).success().parsed();
        for row in listed["workspaces"].as_array().expect("workspaces") {
            let name = row["name"].as_str().expect("a name");
            self.ask(["delete", "--force", name]).success();
        }
        self.ask(["gc"]).success();
        let left = entries(&self.sandbox.state().join("workspaces"));
        assert!(
            left.iter().all(|name| name.starts_with(".lock")),
            "left behind: {left:?}"
        );
        self.sandbox.leftovers().none(&[]);
    }
}

/// A command may fail with a reason, but not panic.
pub(crate) fn sound(finished: &Finished) {
    assert!(
        finished.was_signaled() || (finished.code() != 101 && !finished.err().contains("panicked")),
        "{finished}"
    );
}

/// Kills a process; one that is gone is fine.
pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone_already = kill_process(pid, Signal::KILL);
    }
}

pub(crate) fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| {
            entries
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect()
        },
    )
}

/// The parent of a process, while it lives.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z").then_some(parent)
}
