//! The keys of `microagent.yaml`: the one table that the reader, the JSON Schema and the reference
//! are made of.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    rc::Rc,
};

use microagent_image::Reference;
use microagent_protocol::{
    EnvVar, FileMode, Mebibytes, NetworkMode, VcpuCount, WorkspaceName,
    wiring::{
        DeclaredArtifact, GuestPath, ItemName, MAX_ARTIFACTS, MAX_DISKS, MAX_MEDIATION,
        MAX_PUBLISHED, MediationRoute, MediationTarget, PublishedPort,
    },
};

use super::{
    kind::{
        Kind, choice, flag, list, list_or, names, number, one_or_many, parsed, pattern, text,
        written,
    },
    sense,
    table::Table,
    types::{Spec, SpecResources, SpecWorkload},
};
use crate::{
    command::SHELL,
    options::{HostFile, Profile},
    supervise::{HealthCheck, HealthProbe, RestartPolicy},
    wiring::Volume,
};

/// The most setup commands, files and words of a command each.
const MAX_ITEMS: usize = 256;

/// A path component that is not `.` or `..`, and the path of such.
const GUEST_PATH: &str = r"^(/+([^/.\x00][^/\x00]*|\.[^/.\x00][^/\x00]*|\.\.[^/\x00]+))+/*$";

const ITEM_NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$";

const HOSTNAME: &str =
    r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$";

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

fn workspace_name() -> Kind<WorkspaceName> {
    pattern(
        "a name of 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends",
        "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        |text| text.parse().ok(),
    )
}

fn item_name() -> Kind<ItemName> {
    pattern(
        "a name of 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-' that starts with a letter or digit",
        ITEM_NAME,
        |text| text.parse().ok(),
    )
}

fn guest_path() -> Kind<GuestPath> {
    pattern("an absolute path without . and ..", GUEST_PATH, |text| {
        text.parse::<GuestPath>().ok()
    })
    .limited(GuestPath::MAX_LEN)
}

fn absolute() -> Kind<String> {
    pattern("an absolute path in the guest", r"^/[^\x00]*$", |text| {
        (text.starts_with('/') && !text.contains('\0')).then(|| text.to_owned())
    })
}

fn hostname() -> Kind<String> {
    pattern(
        "a host name, up to 63 letters, digits, '-' and '.'",
        HOSTNAME,
        |text| crate::hostname::check(text).then(|| text.to_owned()),
    )
    .limited(crate::hostname::MAX_LEN)
}

fn user() -> Kind<String> {
    pattern(
        "NAME, UID, NAME:GROUP or UID:GID",
        r"^[^:\x00\n]+(:[^:\x00\n]*)?$",
        |text| crate::command::is_user(text).then(|| text.to_owned()),
    )
}

/// A path of the host, from `base` if it is relative.
fn host_path(base: &Rc<Path>) -> Kind<PathBuf> {
    let base = Rc::clone(base);
    text().map(move |path| base.join(path))
}

/// A program, or a list of words.
fn words() -> Kind<Vec<String>> {
    let word = pattern(
        "a program (for more words write a list, for a shell line use service)",
        r"^[^ \t\r\n\x00]+$",
        |text| {
            let good = !text.is_empty() && !text.contains([' ', '\t', '\r', '\n', '\0']);
            good.then(|| vec![text.to_owned()])
        },
    );
    list_or(list(any_text(), MAX_ITEMS), word)
}

/// Any text without a NUL; it may be empty.
fn any_text() -> Kind<String> {
    pattern("text", r"^[^\x00]*$", |text| {
        (!text.contains('\0')).then(|| text.to_owned())
    })
}

fn file(base: &Rc<Path>) -> Kind<HostFile> {
    let mut table = Table::new("a table");
    let src = table.required(
        "src",
        "The file on the host; relative to the spec.",
        host_path(base),
    );
    let dst = table.required("dst", "Where it goes in the guest.", guest_path());
    let mode = table.optional(
        "mode",
        "Its permissions, octal and in quotes (`\"0644\"`); those it has on the host unless said.",
        pattern(
            "octal permissions such as \"0644\"",
            "^[0-7]{3,4}$",
            |text| text.parse::<FileMode>().ok(),
        ),
    );
    table.absent(&[
        ("source", "write src"),
        ("target", "write dst"),
        (
            "path",
            "write src for the host's file and dst for the guest's",
        ),
        (
            "content",
            "put it into a file beside the spec and name that with src",
        ),
    ]);
    table.build(move |_, _| {
        Some(HostFile {
            mode: mode.take(),
            src: src.take()?,
            dst: dst.take()?,
        })
    })
}

fn env() -> Kind<Vec<EnvVar>> {
    let valid = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    names("variable name", r"^[^=\x00]+$", valid, written()).map(|pairs| {
        pairs
            .into_iter()
            .filter_map(|(name, value)| EnvVar::new(name, value).ok())
            .collect()
    })
}

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

const NO_ADDRESSES: &str = "the guest's address, gateway and resolver are those of the user network \
     and cannot be set; leave it out";

fn network() -> Kind<(Option<NetworkMode>, Vec<PublishedPort>)> {
    const USER: &str =
        "write user, which lets the guest reach out, and publish ports with forwards";
    let mut table = Table::new("a table");
    let mode = table.optional(
        "mode",
        "`user` (outbound connections) or `isolated` (loopback only); `user` unless said.",
        choice(
            &[
                ("user", NetworkMode::User),
                ("isolated", NetworkMode::Isolated),
            ],
            &[
                ("nat", USER),
                ("bridge", USER),
                ("bridged", USER),
                ("named", USER),
                ("host", USER),
                ("none", "write isolated"),
            ],
        ),
    );
    let forwards = table.optional(
        "forwards",
        "TCP ports of the host that lead into the guest, in either mode.",
        list(forward(), MAX_PUBLISHED),
    );
    table.absent(&[
        ("interface", "a workspace is on no bridge; leave it out"),
        ("name", "workspaces share no network; leave it out"),
        ("ip", NO_ADDRESSES),
        ("subnet", NO_ADDRESSES),
        ("gateway", NO_ADDRESSES),
        ("dns", NO_ADDRESSES),
        ("routes", NO_ADDRESSES),
        ("ipv6", NO_ADDRESSES),
        ("ipv6Subnet", NO_ADDRESSES),
        ("ipv6Gateway", NO_ADDRESSES),
        ("ports", "write forwards"),
        ("publish", "write forwards"),
        ("portForwards", "write forwards"),
    ]);
    table.build(move |_, _| Some((mode.take(), forwards.take().unwrap_or_default())))
}

fn forward() -> Kind<PublishedPort> {
    let mut table = Table::new("a table");
    let _protocol = table.default(
        "protocol",
        "tcp",
        "`tcp`, the one protocol there is.",
        choice(&[("tcp", ())], &[("udp", "only TCP can be published")]),
    );
    let host = table.default(
        "host",
        "127.0.0.1",
        "The host's address to listen at.",
        parsed("an IP address", |text| match text {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            text => text.parse().map_err(|_| {
                format!("{text:?} is not an IP address, such as 127.0.0.1 or \"::1\"")
            }),
        }),
    );
    let host_port = table.required(
        "hostPort",
        "The host's port; 0 picks a free one.",
        number(0, u16::MAX),
    );
    let guest_port = table.required("guestPort", "The port in the guest.", number(1, u16::MAX));
    table.build(move |_, _| {
        Some(PublishedPort {
            host: host.take()?,
            host_port: host_port.take()?,
            guest_port: guest_port.take()?,
        })
    })
}

/// A route, or none where it is switched off.
fn mediation() -> Kind<Option<MediationRoute>> {
    let mut table = Table::new("a table");
    let enabled = table.default("enabled", "true", "Whether it is there at all.", flag());
    let port = table.optional(
        "port",
        "The port in the guest; required unless `enabled` is false.",
        number(MediationRoute::MIN_PORT, u16::MAX),
    );
    let target = table.optional(
        "target",
        "The server on the host, `HOST:PORT` or `unix:/path`; required unless `enabled` is false.",
        parsed("a mediation target", str::parse::<MediationTarget>),
    );
    let required = table.default(
        "required",
        "true",
        "Whether the machine may only start while the target can be reached.",
        flag(),
    );
    let fail_closed = table.optional(
        "failClosed",
        "Whether nothing else takes the target's place when it is away. Nothing ever does here, so \
         it may be left out; `required` does not go with `false`.",
        flag(),
    );
    let connections = table.default(
        "maxConnections",
        "128",
        "The most connections at a time; further ones are refused.",
        number(1_u32, 4096),
    );
    table.unless_off("enabled", &["port", "target"]);
    table.build(move |node, reader| {
        let required = required.take()?;
        if required && fail_closed.take() == Some(false) {
            let at = node.get("failClosed").map_or(node.at, |node| node.at);
            reader.object(
                at,
                "failClosed: false contradicts required: true; write required: false for a route \
                 that may be away",
            );
        }
        let (port, target, max_connections) = (port.take(), target.take(), connections.take());
        if !enabled.take()? {
            return Some(None);
        }
        Some(Some(MediationRoute {
            port: port?,
            target: target?,
            required,
            max_connections: max_connections?,
        }))
    })
}

/// Whether the guest may write.
fn access() -> Kind<bool> {
    choice(&[("ro", false), ("rw", true)], &[])
}

const ACCESS: &str = "`ro` (the machine refuses writes) or `rw`.";
const MOUNTPOINT: &str = "Where it is mounted in the guest; made if it is missing.";

fn disk(base: &Rc<Path>) -> Kind<Volume> {
    let mut table = Table::new("a table");
    let name = table.required("name", "Its name, one of a kind.", item_name());
    let path = table.required(
        "path",
        "The ext4 image; relative to the spec.",
        host_path(base),
    );
    let mountpoint = table.required("mountpoint", MOUNTPOINT, guest_path());
    let mode = table.default("mode", "ro", ACCESS, access());
    table.absent(&[
        (
            "sourcePath",
            "the image is attached where it is; write path",
        ),
        ("bundle", "write an archive under bundles"),
    ]);
    table.build(move |_, _| {
        let (name, path, mountpoint) = (name.take(), path.take(), mountpoint.take());
        Some(Volume::disk(name?, path?, mountpoint?).writable(mode.take()?))
    })
}

fn bundle(base: &Rc<Path>) -> Kind<Volume> {
    let mut table = Table::new("a table");
    let name = table.required("name", "Its name, one of a kind.", item_name());
    let path = table.required(
        "path",
        "The archive: a tar, plain or compressed with gzip or zstd; relative to the spec.",
        host_path(base),
    );
    let mountpoint = table.required("mountpoint", MOUNTPOINT, guest_path());
    let mode = table.default("mode", "ro", ACCESS, access());
    table.build(move |_, _| {
        let (name, path, mountpoint) = (name.take(), path.take(), mountpoint.take());
        Some(Volume::bundle(name?, path?, mountpoint?).writable(mode.take()?))
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
