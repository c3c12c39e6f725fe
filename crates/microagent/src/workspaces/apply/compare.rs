//! Which differences between two manifests can be made good without a new workspace, and when.
//! Pure: no file, no process.

use std::{collections::BTreeMap, path::Path};

use microagent_protocol::{
    DeclaredArtifact, EnvVar, ExtraDisk, MediationRoute, PublishedPort, WorkspaceName,
    exec::ExecRequest,
};
use serde::Serialize;

use super::{Effect, FieldChange, RefusedChange};
use crate::workspaces::manifest::Manifest;

/// In place of what a variable says: it may be a secret.
const HIDDEN: &str = "(not shown)";

/// What decides whether a difference can be made good.
pub(super) struct Circumstances<'a> {
    pub(super) name: &'a WorkspaceName,
    pub(super) directory: &'a Path,
    /// Whether a machine uses it.
    pub(super) live: bool,
    /// Whether its setup commands have run and its files are there.
    pub(super) set_up: bool,
}

/// What a difference in a field needs.
enum Need {
    /// Nothing: it is in force as soon as it is written.
    Nothing,
    /// Another start.
    Start,
    /// That a machine's ports listen elsewhere, if there is a machine.
    Rebinding,
    /// That no machine uses the workspace: what its commands are told must be true of its machine.
    Rest,
    /// Another workspace; this is what to do.
    Anew(String),
}

type Compared = (Vec<FieldChange>, Vec<RefusedChange>);

impl Circumstances<'_> {
    /// Each difference, in the order of a spec's keys: what can be made good, and what cannot.
    pub(super) fn compare(&self, old: &Manifest, new: &Manifest) -> Compared {
        let mut all = Comparison {
            circumstances: self,
            found: (Vec::new(), Vec::new()),
        };
        let anew = |why: &str| {
            Need::Anew(format!(
                "{why}; make another one with microagent create, and copy over what matters with \
                 microagent cp"
            ))
        };
        let reference = |manifest: &Manifest| Some(manifest.image.reference.clone());
        all.field("image", old, new, reference, || {
            anew("a workspace stays with its image")
        });
        all.field(
            "restart",
            old,
            new,
            |m| Some(m.restart.to_string()),
            || Need::Nothing,
        );
        let argv = |workload: &Option<ExecRequest>| workload.as_ref().map(|exec| text(&exec.argv));
        all.field("command", old, new, |m| argv(&m.workload), || Need::Rest);
        all.field("shell", old, new, |m| m.shell.clone(), || Need::Rest);
        let hostname = |manifest: &Manifest| Some(manifest.hostname.clone());
        all.field("hostname", old, new, hostname, || Need::Rest);
        all.field("user", old, new, |m| m.session.user.clone(), || Need::Rest);
        all.field(
            "workdir",
            old,
            new,
            |m| m.session.cwd.clone(),
            || Need::Rest,
        );
        let once = |does: &str| match self.set_up {
            false => Need::Start,
            true => Need::Anew(format!(
                "it is done once, and was; {does}, or make another one with microagent create"
            )),
        };
        all.field(
            "setup",
            old,
            new,
            |m| list(&m.setup, text),
            || once(&format!("run it with microagent exec {}", self.name)),
        );
        all.field(
            "files",
            old,
            new,
            |m| list(&m.files, text),
            || once("copy them with microagent cp"),
        );
        all.env(&old.session.env, &new.session.env);
        all.resources(old, new);
        let mode = |manifest: &Manifest| Some(manifest.network.to_string());
        all.field("network.mode", old, new, mode, || Need::Rest);
        all.field(
            "network.forwards",
            old,
            new,
            |m| list(&m.publish, PublishedPort::to_string),
            || match only_addresses_differ(&old.publish, &new.publish) {
                true => Need::Rebinding,
                false => Need::Rest,
            },
        );
        all.field(
            "mediation",
            old,
            new,
            |m| list(&m.mediation, route),
            || Need::Rest,
        );
        let disks = |own: bool| {
            move |manifest: &Manifest| {
                let disks = manifest.disks.iter();
                let kind: Vec<_> = disks
                    .filter(|disk| disk.path.starts_with(self.directory) == own)
                    .collect();
                list(&kind, |disk| show_disk(disk))
            }
        };
        all.field("disks", old, new, disks(false), || Need::Rest);
        all.field("bundles", old, new, disks(true), || {
            anew("bundles become disks when a workspace is made")
        });
        let output = |one: &DeclaredArtifact| format!("{}={}", one.name, one.path);
        all.field(
            "outputs",
            old,
            new,
            |m| list(&m.artifacts, output),
            || Need::Nothing,
        );
        all.field(
            "health",
            old,
            new,
            |m| m.health.as_ref().map(text),
            || Need::Start,
        );
        all.found
    }
}

/// Leaves what differs in its order alone as it is: the order of variables means nothing, and
/// neither does that of disks beside bundles.
pub(super) fn keep_order(old: &Manifest, new: &mut Manifest) {
    if by_name(&old.session.env) == by_name(&new.session.env) {
        new.session.env.clone_from(&old.session.env);
        if let (Some(old), Some(new)) = (&old.workload, &mut new.workload) {
            new.env.clone_from(&old.env);
        }
    }
    let sorted = |disks: &[ExtraDisk]| {
        let mut disks = disks.to_vec();
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        disks
    };
    if sorted(&old.disks) == sorted(&new.disks) {
        new.disks.clone_from(&old.disks);
    }
}

struct Comparison<'a> {
    circumstances: &'a Circumstances<'a>,
    found: Compared,
}

impl Comparison<'_> {
    /// Notes a difference in what `show` makes of both.
    fn field(
        &mut self,
        field: &str,
        old: &Manifest,
        new: &Manifest,
        show: impl Fn(&Manifest) -> Option<String>,
        need: impl FnOnce() -> Need,
    ) {
        let (old, new) = (show(old), show(new));
        if old != new {
            self.note(field.to_owned(), old, new, need());
        }
    }

    fn note(&mut self, field: String, old: Option<String>, new: Option<String>, need: Need) {
        let effect = match need {
            Need::Nothing => Ok(Effect::Now),
            Need::Rebinding if self.circumstances.live => Ok(Effect::Now),
            Need::Start | Need::Rebinding => Ok(Effect::NextStart),
            Need::Rest if !self.circumstances.live => Ok(Effect::NextStart),
            Need::Rest => Err(format!(
                "its machine is live; end it first with microagent halt {}",
                self.circumstances.name
            )),
            Need::Anew(remedy) => Err(remedy),
        };
        match effect {
            Ok(effect) => self.found.0.push(FieldChange {
                field,
                old,
                new,
                effect,
            }),
            Err(remedy) => self.found.1.push(RefusedChange {
                field,
                old,
                new,
                remedy,
            }),
        }
    }

    fn env(&mut self, old: &[EnvVar], new: &[EnvVar]) {
        let (old, new) = (by_name(old), by_name(new));
        let names: Vec<_> = old.keys().chain(new.keys()).copied().collect();
        let mut names: Vec<&str> = names;
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (before, after) = (old.get(name), new.get(name));
            if before != after {
                let hidden = |value: Option<&&str>| value.map(|_| HIDDEN.to_owned());
                let field = format!("env.{name}");
                self.note(field, hidden(before), hidden(after), Need::Rest);
            }
        }
    }

    fn resources(&mut self, old: &Manifest, new: &Manifest) {
        let memory = |manifest: &Manifest| Some(manifest.resources.memory_mib.to_string());
        self.field("resources.memoryMiB", old, new, memory, || Need::Start);
        let cpus = |manifest: &Manifest| Some(manifest.resources.cpu_count.to_string());
        self.field("resources.cpuCount", old, new, cpus, || Need::Start);
        let size = |manifest: &Manifest| Some(manifest.resources.size_mib.to_string());
        self.field("resources.sizeMiB", old, new, size, || {
            Need::Anew(
                "a disk keeps the size it was made with; make another workspace with microagent \
                 create, and copy over what matters with microagent cp"
                    .to_owned(),
            )
        });
    }
}

fn by_name(vars: &[EnvVar]) -> BTreeMap<&str, &str> {
    let pairs = vars.iter().map(|var| (var.name(), var.value()));
    pairs.collect()
}

/// Whether the ports lead from the same ports of the host to the same of the guest.
fn only_addresses_differ(old: &[PublishedPort], new: &[PublishedPort]) -> bool {
    let ports = |list: &[PublishedPort]| -> Vec<_> {
        let ports = list.iter().map(|port| (port.host_port, port.guest_port));
        ports.collect()
    };
    ports(old) == ports(new)
}

fn route(route: &MediationRoute) -> String {
    let optional = if route.required { "" } else { " optional" };
    format!("{route} x{}{optional}", route.max_connections)
}

fn show_disk(disk: &ExtraDisk) -> String {
    let mode = if disk.read_only { "ro" } else { "rw" };
    format!(
        "{}={}:{}:{mode}",
        disk.name,
        disk.path.display(),
        disk.mountpoint
    )
}

/// A list as one text; none if it is empty.
fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> Option<String> {
    let shown: Vec<_> = items.iter().map(show).collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

/// A value as JSON has it.
fn text<T: Serialize + ?Sized>(value: &T) -> String {
    // None of these types can fail to be written.
    serde_json::to_string(value).unwrap_or_default()
}
