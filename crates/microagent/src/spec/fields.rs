//! The keys of `microagent.yaml`: the one table that the reader, the JSON Schema and the reference
//! are made of.

mod connections;
mod values;

use std::{
    num::{NonZeroU16, NonZeroU32},
    path::Path,
    rc::Rc,
};

use microagent_image::Reference;
use microagent_protocol::{
    Mebibytes, VcpuCount,
    wiring::{DeclaredArtifact, MAX_ARTIFACTS, MAX_DISKS, MAX_MEDIATION},
};

use self::{
    connections::{bundle, disk, mediation, network},
    values::{
        absolute, any_text, env, file, guest_path, host_path, hostname, item_name, user, words,
        workspace_name,
    },
};
use super::{
    kind::{Kind, choice, list, list_or, number, one_or_many, parsed, pattern, text},
    sense,
    table::Table,
    types::{Spec, SpecResources, SpecWorkload},
};
use crate::{
    command::SHELL,
    profile::Profile,
    supervise::{HealthCheck, HealthProbe, RestartPolicy},
};

/// The most setup commands, files and words of a command each.
const MAX_ITEMS: usize = 256;

/// A whole spec, whose relative paths start at `base`.
pub(super) fn spec(base: &Path) -> Kind<Spec> {
    let base: Rc<Path> = base.into();
    let mut table = Table::new("a table");
    let name = table.optional("name", "The workspace's name.", workspace_name());
    let image = table.optional(
        "image",
        "The image: `NAME[:TAG]` or `NAME@sha256:DIGEST`, with the registry in front.",
        parsed("an image reference", str::parse::<Reference>),
    );
    let profile = table.optional(
        "profile",
        "The machine's size: `tiny` (256 MiB, 1 CPU, 512 MiB of disk), `small` (512, 2, 1024), \
         `medium` (2048, 2, 8192) or `large` (4096, 4, 16384); `small` unless said.",
        choice(
            &[
                ("tiny", Profile::Tiny),
                ("small", Profile::Small),
                ("medium", Profile::Medium),
                ("large", Profile::Large),
            ],
            &[],
        ),
    );
    let restart = table.optional(
        "restart",
        "When `supervise` starts it again: `never`, `on-failure` or `always`; `never` unless said.",
        choice(
            &[
                ("never", RestartPolicy::Never),
                ("on-failure", RestartPolicy::OnFailure),
                ("always", RestartPolicy::Always),
            ],
            &[
                ("no", "write never"),
                (
                    "unless-stopped",
                    "a workspace stays stopped when you stop it; write always",
                ),
            ],
        ),
    );
    let entrypoint = table.optional(
        "entrypoint",
        "What runs at each start, instead of the image's entrypoint: a program, or a list of words.",
        words(),
    );
    let command = table.optional(
        "command",
        "What runs at each start, instead of the image's command: a program, or a list of words.",
        words(),
    );
    let service = table.optional(
        "service",
        "What runs at each start, as one line for the shell, whatever the image says.",
        text(),
    );
    let shell = table.optional(
        "shell",
        "The shell of `service`, `setup` and `connect`, by its path in the guest; `/bin/sh` unless \
         said.",
        absolute(),
    );
    let hostname = table.optional(
        "hostname",
        "The guest's host name; the workspace's name unless said.",
        hostname(),
    );
    let user = table.optional(
        "user",
        "The user everything runs as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`; the image's unless \
         said.",
        user(),
    );
    let workdir = table.optional(
        "workdir",
        "The directory everything runs in, made if it is missing; the image's unless said.",
        absolute(),
    );
    let setup = table.optional(
        "setup",
        "Lines for the shell that run once, in order, before the first start.",
        list(text(), MAX_ITEMS),
    );
    let setup_files = table.optional(
        "setupFiles",
        "Shell scripts of the host that run once, in order, after `setup`; relative to the spec.",
        list(host_path(&base), MAX_ITEMS),
    );
    let files = table.optional(
        "files",
        "Files of the host that are copied in when the workspace is made, before `setup`.",
        list(file(&base), MAX_ITEMS),
    );
    let env = table.optional("env", "Environment variables, over the image's own.", env());
    let resources = table.optional(
        "resources",
        "Sizes that go over the profile's.",
        resources(),
    );
    let network = table.optional("network", "How it is connected.", network());
    let mediation = table.optional(
        "mediation",
        "Ways from the guest to servers of the host; one, or a list.",
        one_or_many(mediation(), MAX_MEDIATION),
    );
    let disks = table.optional(
        "disks",
        "ext4 images that are attached, in order, and mounted before anything runs.",
        list(disk(&base), MAX_DISKS),
    );
    let bundles = table.optional(
        "bundles",
        "Archives that are made into disks, attached after `disks`.",
        list(bundle(&base), MAX_DISKS),
    );
    let outputs = table.optional(
        "outputs",
        "Artifacts: files and directories of the guest that `artifacts` takes out by name, and `run --artifacts-dir` at the end.",
        list(output(), MAX_ARTIFACTS),
    );
    let health = table.optional(
        "health",
        "What tells `supervise` that it is well; it needs a `restart` policy.",
        health(),
    );
    table.excludes("service", "entrypoint");
    table.excludes("service", "command");
    table.absent(ABSENT);
    table.build(move |node, reader| {
        let (mode, publish) = network.take().unwrap_or_default();
        let words = (entrypoint.take(), command.take());
        let spec = Spec {
            name: name.take(),
            image: image.take(),
            profile: profile.take(),
            restart: restart.take(),
            workload: match (service.take(), words) {
                (Some(line), _) => SpecWorkload::Service(line),
                (None, (None, None)) => SpecWorkload::Unsaid,
                (None, (entrypoint, command)) => SpecWorkload::Words {
                    entrypoint,
                    command,
                },
            },
            shell: shell.take(),
            hostname: hostname.take(),
            user: user.take(),
            workdir: workdir.take(),
            setup: setup.take().unwrap_or_default(),
            setup_files: setup_files.take().unwrap_or_default(),
            files: files.take().unwrap_or_default(),
            env: env.take().unwrap_or_default(),
            resources: resources.take().unwrap_or_default(),
            network: mode,
            publish,
            mediation: mediation.take().into_iter().flatten().flatten().collect(),
            volumes: [disks.take(), bundles.take()]
                .into_iter()
                .flatten()
                .flatten()
                .collect(),
            outputs: outputs.take().unwrap_or_default(),
            health: health.take(),
        };
        sense::check(&spec, node, reader);
        Some(spec)
    })
}

const ABSENT: &[(&str, &str)] = &[
    (
        "<<",
        "merge keys are no part of YAML 1.2; write the keys out",
    ),
    (
        "services",
        "a spec is one workspace; write one file for each",
    ),
    ("version", "leave it out"),
    (
        "build",
        "images are built by other tools; name one with image",
    ),
    ("ports", "publish ports with network.forwards"),
    ("publish", "publish ports with network.forwards"),
    ("environment", "write env"),
    (
        "env_file",
        "write the variables under env, or give --env-file on the command line",
    ),
    ("args", "write command"),
    ("cmd", "write command"),
    (
        "volumes",
        "attach ext4 images with disks and archives with bundles; copy files in with files",
    ),
    (
        "mounts",
        "attach ext4 images with disks and archives with bundles; copy files in with files",
    ),
    ("healthcheck", "write health"),
    ("working_dir", "write workdir"),
    ("memory", "write resources.memoryMiB"),
    ("cpus", "write resources.cpuCount"),
    (
        "privileged",
        "the guest is root in its own kernel already; leave it out",
    ),
    (
        "cap_add",
        "the guest has every capability in its own kernel; leave it out",
    ),
    ("cap_drop", "run as another user with user"),
    ("devices", "a microVM has no device of the host"),
    ("artifacts", "write outputs"),
    (
        "model",
        "models are not served here; reach a server of the host with mediation",
    ),
    (
        "modelRunner",
        "models are not served here; reach a server of the host with mediation",
    ),
    (
        "modelMediation",
        "models are not served here; reach a server of the host with mediation",
    ),
    ("agent", "give env, network and mediation instead"),
    (
        "secrets",
        "there is no secret store; hand secrets over with mediation, or with --env",
    ),
];

fn resources() -> Kind<SpecResources> {
    let mut table = Table::new("a table");
    let size = || number(1, u32::MAX).map(Mebibytes);
    let memory = table.optional("memoryMiB", "Guest memory.", size());
    let vcpus = table.optional(
        "cpuCount",
        "vCPUs.",
        number(1, VcpuCount::MAX).map(VcpuCount::try_from),
    );
    let disk = table.optional("sizeMiB", "The most the workspace may write.", size());
    let headroom = table.optional(
        "headroomMiB",
        "The least the workspace may write where `sizeMiB` is not given and the profile's disk is \
         smaller.",
        size(),
    );
    table.absent(&[
        ("memory", "write memoryMiB"),
        ("cpus", "write cpuCount"),
        ("disk", "write sizeMiB"),
    ]);
    table.build(move |_, _| {
        Some(SpecResources {
            memory: memory.take(),
            vcpus: vcpus.take().and_then(Result::ok),
            disk: disk.take(),
            headroom: headroom.take(),
        })
    })
}

fn output() -> Kind<DeclaredArtifact> {
    let mut table = Table::new("a table");
    let name = table.required(
        "name",
        "Its name, one of a kind; the file on the host is called so, and a directory's with `.tar` behind.",
        item_name(),
    );
    let path = table.required("path", "Where it is in the guest.", guest_path());
    table.build(move |_, _| {
        Some(DeclaredArtifact {
            name: name.take()?,
            path: path.take()?,
        })
    })
}

fn health() -> Kind<HealthCheck> {
    let mut table = Table::new("a table");
    let exec = table.optional(
        "exec",
        "Runs this in the guest: a line for the shell, or a list of words; well is exit code 0.",
        list_or(
            list(any_text(), MAX_ITEMS),
            text().map(|line| vec![SHELL.to_owned(), "-c".to_owned(), line]),
        )
        .and_then(|words| match words.first() {
            Some(program) if !program.is_empty() => Ok(words),
            _ => Err("it names no program".to_owned()),
        }),
    );
    let http = table.optional(
        "httpGet",
        "Asks an HTTP server in the guest for this path; well is a status from 200 to 399.",
        pattern(
            "a path that starts with '/', without blanks",
            "^/[!-~]*$",
            |text| {
                (text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()))
                    .then(|| text.to_owned())
            },
        ),
    );
    let port = table.optional(
        "port",
        "The guest's port for `httpGet`; one of `network.forwards`.",
        number(1, u16::MAX),
    );
    let positive = |max: u32| number(1, max).map(NonZeroU32::new);
    let interval = table.default(
        "intervalSeconds",
        "30",
        "From the end of one probe to the next.",
        positive(86_400),
    );
    let timeout = table.default(
        "timeoutSeconds",
        "5",
        "The most a probe may take.",
        positive(3_600),
    );
    let retries = table.default(
        "retries",
        "3",
        "How many probes must fail one after the other for the machine to be killed and count as \
         failed.",
        positive(1_000),
    );
    let start_period = table.default(
        "startPeriodSeconds",
        "0",
        "How long after the guest is ready the first probe is made.",
        number(0_u32, 86_400),
    );
    table.one_of(&["exec", "httpGet"]);
    table.needs("httpGet", "port");
    table.needs("port", "httpGet");
    table.absent(&[
        ("test", "write exec"),
        ("command", "write exec"),
        ("http", "write httpGet and port"),
        ("interval", "write intervalSeconds"),
        ("timeout", "write timeoutSeconds"),
        ("start_period", "write startPeriodSeconds"),
    ]);
    table.build(move |_, _| {
        let port = port.take().and_then(NonZeroU16::new);
        let probe = match (exec.take(), http.take(), port) {
            (Some(words), None, _) => HealthProbe::Exec(words),
            (None, Some(path), Some(port)) => HealthProbe::HttpGet { port, path },
            _ => return None,
        };
        Some(HealthCheck {
            probe,
            interval_seconds: interval.take()??,
            timeout_seconds: timeout.take()??,
            retries: retries.take()??,
            start_period_seconds: start_period.take()?,
        })
    })
}
