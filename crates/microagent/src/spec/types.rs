//! What a spec says, as types.

use std::path::PathBuf;

use microagent_image::Reference;
use microagent_protocol::{
    EnvVar, Mebibytes, NetworkMode, VcpuCount, WorkspaceName,
    wiring::{DeclaredArtifact, MediationRoute, PublishedPort},
};

use crate::{
    options::HostFile,
    profile::Profile,
    supervise::{HealthCheck, RestartPolicy},
    wiring::Volume,
};

/// What a `microagent.yaml` says. What it does not say is `None` or empty. Paths of the host are
/// absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spec {
    /// The workspace's name.
    pub name: Option<WorkspaceName>,
    /// The image.
    pub image: Option<Reference>,
    /// The machine's size by name.
    pub profile: Option<Profile>,
    /// When `supervise` starts it again.
    pub restart: Option<RestartPolicy>,
    /// What runs at each start.
    pub workload: SpecWorkload,
    /// The shell of `service`, of `setup` and of `connect`.
    pub shell: Option<String>,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// The user that everything runs as.
    pub user: Option<String>,
    /// The directory that everything runs in.
    pub workdir: Option<String>,
    /// Shell commands that run once, before the first start.
    pub setup: Vec<String>,
    /// Shell scripts of the host that run once, after [`Self::setup`].
    pub setup_files: Vec<PathBuf>,
    /// Files of the host that are copied into the workspace when it is made.
    pub files: Vec<HostFile>,
    /// Environment variables, over the image's own.
    pub env: Vec<EnvVar>,
    /// Sizes that go over the profile's.
    pub resources: SpecResources,
    /// How it is connected.
    pub network: Option<NetworkMode>,
    /// Ports of the host that lead into the guest.
    pub publish: Vec<PublishedPort>,
    /// Ways from the guest to servers of the host.
    pub mediation: Vec<MediationRoute>,
    /// Disks that are mounted besides the root: `disks`, then `bundles`.
    pub volumes: Vec<Volume>,
    /// What is taken out at the end.
    pub outputs: Vec<DeclaredArtifact>,
    /// What tells whether it is well.
    pub health: Option<HealthCheck>,
}

/// What a spec says to run at each start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SpecWorkload {
    /// Nothing is said.
    #[default]
    Unsaid,
    /// One line for the shell.
    Service(String),
    /// Words that go over the image's own.
    Words {
        /// Instead of the image's entrypoint.
        entrypoint: Option<Vec<String>>,
        /// Instead of the image's command.
        command: Option<Vec<String>>,
    },
}

/// Sizes that go over the profile's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecResources {
    /// Guest memory.
    pub memory: Option<Mebibytes>,
    /// vCPUs.
    pub vcpus: Option<VcpuCount>,
    /// The most the workspace may write.
    pub disk: Option<Mebibytes>,
    /// The least the workspace may write where only the profile says how much.
    pub headroom: Option<Mebibytes>,
}

/// A key that a spec may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecKey {
    /// The key with those around it, such as `network.forwards[].hostPort`.
    pub path: String,
    /// What it takes, in words.
    pub takes: String,
    /// What it is when it is left out, where that is one value.
    pub default: Option<String>,
    /// Whether the table it is in must have it.
    pub required: bool,
    /// What it means.
    pub meaning: &'static str,
}
