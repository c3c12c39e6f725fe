//! What a supervisor needs to know to boot one workspace.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    confinement::ConfinementMode,
    exec::ExecRequest,
    log::LogFilter,
    name::WorkspaceName,
    units::{Mebibytes, VcpuCount},
    wiring::{DeclaredArtifact, ExtraDisk, MediationRoute, PublishedPort},
};

/// A way to run machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Firecracker, which needs KVM.
    Firecracker,
    /// QEMU with KVM.
    QemuKvm,
    /// QEMU with software emulation.
    QemuTcg,
    /// Apple's Virtualization.framework.
    AppleVf,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Self; 4] = [
        Self::Firecracker,
        Self::QemuKvm,
        Self::QemuTcg,
        Self::AppleVf,
    ];

    /// Its name on the command line and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
            Self::AppleVf => "apple-vf",
        }
    }
}

/// What a backend's machines can do. Declared in one place, and proved for each driver by the
/// conformance suite in `microagent-hypervisor`; of `apple-vf` it is a declaration that nobody proved yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Capabilities {
    /// Its vCPUs can be frozen and thawed.
    pub pause: bool,
    /// It can have the network mode `user`.
    pub user_network: bool,
    /// Its network and its vsock can be cut off for good.
    pub sever: bool,
    /// That ends the connections that are open; else the machine is frozen for good, so that nothing
    /// moves on them.
    pub sever_ends_connections: bool,
    /// Each direction of a vsock connection ends on its own; else the host's end ends both, and the
    /// guest's is seen when it ends both.
    pub half_close: bool,
    /// Its serial console can be attached to.
    pub console: bool,
    /// A disk of several files is read as it is; else it is made one file first, which costs the
    /// disk's size once.
    pub joined_disks: bool,
    /// The guest sees its disks' serials; else it knows them by their order.
    pub disk_serials: bool,
}

impl Backend {
    /// What its machines can do.
    #[must_use]
    pub const fn capabilities(self) -> Capabilities {
        match self {
            Self::Firecracker => Capabilities {
                pause: true,
                // Where there is a passt.
                user_network: true,
                sever: true,
                sever_ends_connections: false,
                half_close: false,
                console: true,
                joined_disks: false,
                disk_serials: false,
            },
            Self::QemuKvm | Self::QemuTcg => Capabilities {
                pause: true,
                user_network: true,
                sever: true,
                sever_ends_connections: true,
                half_close: true,
                console: true,
                joined_disks: true,
                disk_serials: true,
            },
            Self::AppleVf => Capabilities {
                pause: true,
                // Nothing on a Mac holds a guest to its policy yet.
                user_network: false,
                sever: true,
                sever_ends_connections: true,
                // The framework does not say.
                half_close: false,
                console: true,
                joined_disks: false,
                disk_serials: true,
            },
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which backend to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// The best one that was proved to work on this host.
    #[default]
    Auto,
    /// QEMU, with KVM where it was proved to work.
    Qemu,
    /// This one or none.
    #[serde(untagged)]
    Only(Backend),
}

/// Not a backend's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a backend; use auto, firecracker, qemu, qemu-kvm, qemu-tcg or apple-vf")]
pub struct InvalidBackend {
    input: String,
}

impl std::str::FromStr for BackendChoice {
    type Err = InvalidBackend;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        Ok(match input {
            "auto" => Self::Auto,
            "qemu" => Self::Qemu,
            other => Self::Only(
                Backend::ALL
                    .into_iter()
                    .find(|backend| backend.as_str() == other)
                    .ok_or_else(|| InvalidBackend {
                        input: input.to_owned(),
                    })?,
            ),
        })
    }
}

impl std::fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Qemu => f.write_str("qemu"),
            Self::Only(backend) => backend.fmt(f),
        }
    }
}

/// How a workspace is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Outbound connections through the host's user-mode network.
    #[default]
    User,
    /// No network interface but loopback.
    Isolated,
}

impl std::str::FromStr for NetworkMode {
    type Err = InvalidNetworkMode;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "user" => Ok(Self::User),
            "isolated" => Ok(Self::Isolated),
            _ => Err(InvalidNetworkMode {
                input: input.to_owned(),
            }),
        }
    }
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Isolated => "isolated",
        })
    }
}

/// What carries a `user` network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetworkProvider {
    /// passt, behind a filter: the host's loopback, link-local and metadata addresses are not reached.
    Passt,
    /// QEMU's own network: the host's loopback is reached at the gateway's address.
    Slirp,
}

impl std::fmt::Display for NetworkProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passt => "passt",
            Self::Slirp => "QEMU's own, with the host's loopback at the gateway",
        })
    }
}

/// Not a network mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not a network mode; use user (outbound connections) or isolated (loopback only)"
)]
pub struct InvalidNetworkMode {
    input: String,
}

/// One boot of one workspace. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LaunchSpec {
    /// The workspace's name.
    pub workspace: WorkspaceName,
    /// Its directory: the supervisor writes `events.jsonl`, `result.json`,
    /// `console.log` and `supervisor.log` there.
    pub directory: PathBuf,
    /// A short private directory (0700) for sockets, made by the caller and
    /// removed by the supervisor when it ends.
    pub runtime_dir: PathBuf,
    /// Which backend to use.
    pub backend: BackendChoice,
    /// Where verdicts on this host are kept for the rest of its boot, as in
    /// [`HostQuery::cache_dir`](crate::supervisor::HostQuery::cache_dir); made
    /// if missing. Without it the host is proved anew for every launch.
    #[serde(default)]
    pub host_cache: Option<PathBuf>,
    /// As [`HostQuery::probe_limit_ms`](crate::supervisor::HostQuery::probe_limit_ms), where the host
    /// must be proved first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_limit_ms: Option<u64>,
    /// Guest memory.
    pub memory: Mebibytes,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// The kernel, an uncompressed ELF image.
    pub kernel: PathBuf,
    /// The initramfs with the guest agent in it.
    pub initramfs: PathBuf,
    /// The read-only base disk.
    pub base_disk: PathBuf,
    /// The workspace's own writable disk.
    pub scratch_disk: PathBuf,
    /// Disks after the scratch disk, in the order they are attached and mounted.
    #[serde(default)]
    pub disks: Vec<ExtraDisk>,
    /// How it is connected.
    pub network: NetworkMode,
    /// How much its VMM is held back.
    #[serde(default)]
    pub confinement: ConfinementMode,
    /// Ports of the host that lead into the guest. All are bound before the machine boots.
    #[serde(default)]
    pub publish: Vec<PublishedPort>,
    /// Ways from the guest to servers of the host.
    #[serde(default)]
    pub mediation: Vec<MediationRoute>,
    /// Started by the supervisor as soon as the guest is ready, its output kept for the result.
    /// Without it the owner starts one, or the machine idles until it is told to end.
    #[serde(default)]
    pub workload: Option<ExecRequest>,
    /// Declared to be taken out by name. Whoever launched the machine does that.
    #[serde(default)]
    pub artifacts: Vec<DeclaredArtifact>,
    /// The guest's host name.
    pub hostname: String,
    /// How long a boot may take until the guest is ready, in milliseconds. The first attempt gets
    /// a third of it, the one retry all of it.
    pub boot_timeout_ms: u64,
    /// How long the machine may live in all, in milliseconds; the supervisor enforces it.
    #[serde(default)]
    pub time_limit_ms: Option<u64>,
    /// Whether the machine lives only as long as the program that launched it:
    /// the first connection to subscribe as owner, and before it the launching process.
    pub owned: bool,
    /// Whether `directory` goes with the machine. Its owner removes it; the supervisor does
    /// when the owner is gone.
    #[serde(default)]
    pub ephemeral: bool,
    /// The most bytes of each output stream kept in the result.
    pub capture_limit: u32,
    /// The most bytes of console log kept (one older file of the same size beside it).
    pub console_limit: u32,
    /// What the supervisor writes into its log: messages from `info` on unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogFilter>,
}
