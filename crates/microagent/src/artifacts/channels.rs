//! What goes into a workspace and comes out of it by name, as it is declared.

use std::path::{Path, PathBuf};

use microagent_protocol::{GuestPath, ItemName};
use serde::Serialize;

use crate::workspaces::manifest::Manifest;

/// What was put into a workspace as a bundle, and what it declares to be taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArtifactChannels {
    /// What goes in.
    pub ingress: Vec<IngressArtifact>,
    /// What comes out.
    pub egress: Vec<EgressArtifact>,
}

/// A bundle that was made into a disk of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IngressArtifact {
    /// Its name.
    pub name: ItemName,
    /// The disk on the host.
    pub path: PathBuf,
    /// Where it is mounted in the guest.
    pub mountpoint: GuestPath,
    /// `ro` or `rw`.
    pub mode: &'static str,
    /// What it is.
    pub kind: ChannelKind,
}

/// A declared artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressArtifact {
    /// Its name.
    pub name: ItemName,
    /// Where it is in the guest.
    pub path: GuestPath,
    /// What it is.
    pub kind: ChannelKind,
}

/// What something that goes in or comes out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelKind {
    /// An archive that was made into a disk.
    Bundle,
    /// A file or directory of the guest.
    Output,
}

impl ArtifactChannels {
    /// Those of the workspace in `directory`.
    pub(crate) fn of(manifest: &Manifest, directory: &Path) -> Self {
        // A bundle's disk is the workspace's own; those of the caller are elsewhere.
        let bundles = manifest.disks.iter();
        let bundles = bundles.filter(|disk| disk.path.starts_with(directory));
        let ingress = bundles.map(|disk| IngressArtifact {
            name: disk.name.clone(),
            path: disk.path.clone(),
            mountpoint: disk.mountpoint.clone(),
            mode: if disk.read_only { "ro" } else { "rw" },
            kind: ChannelKind::Bundle,
        });
        let egress = manifest.artifacts.iter().map(|artifact| EgressArtifact {
            name: artifact.name.clone(),
            path: artifact.path.clone(),
            kind: ChannelKind::Output,
        });
        Self {
            ingress: ingress.collect(),
            egress: egress.collect(),
        }
    }
}
