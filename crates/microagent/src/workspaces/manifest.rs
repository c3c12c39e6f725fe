//! `manifest.json`: what a workspace is made of, sealed by its own digest.
//!
//! The first line is the seal: the format and the SHA-256 of everything after that line. A change
//! of any byte is noticed when it is read.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use microagent_protocol::{
    BackendChoice, DeclaredArtifact, ExtraDisk, MediationRoute, NetworkMode, PublishedPort,
    Timestamp, WorkspaceName,
    exec::{ExecRequest, ExecRole},
};
use serde::{Deserialize, Serialize};

use crate::{
    command,
    error::{Error, IoContext, Result},
    files::{self, Durability},
    options::HostFile,
    profile::Resources,
    result::{ImageInfo, KernelInfo},
    supervise::{HealthCheck, RestartPolicy},
};

/// The version of [`Manifest`].
const FORMAT: u32 = 2;

/// Its file.
pub(crate) const MANIFEST: &str = "manifest.json";

/// A manifest may not be larger, in bytes.
const MAX: u64 = 4 << 20;

/// A file a machine boots from, as it was when the workspace was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// A SHA-256 in hexadecimal.
    pub(crate) sha256: String,
    /// What that is of.
    #[serde(default)]
    pub(crate) hashed: Hashed,
}

/// What a digest is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hashed {
    /// The file; base disks too, in workspaces of the first versions.
    #[default]
    Whole,
    /// The list of the sums of the file's chunks ([`microagent_image::disk::ChunkSums`]).
    Chunks,
    /// The file, which lists the files of a disk ([`microagent_disk::DiskList`]), each with the digest of its chunks.
    List,
}

/// Everything a machine boots from that is not the workspace's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    pub(crate) kernel: Part,
    pub(crate) initramfs: Part,
    pub(crate) base_disk: Part,
    /// The SHA-256 of the guest agent inside the initramfs.
    pub(crate) guest_sha256: String,
}

/// What a workspace is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: WorkspaceName,
    /// Whether it goes with the run that made it.
    pub(crate) ephemeral: bool,
    pub(crate) created_at: Timestamp,
    pub(crate) image: ImageInfo,
    pub(crate) kernel: KernelInfo,
    pub(crate) parts: Parts,
    pub(crate) backend: BackendChoice,
    pub(crate) resources: Resources,
    pub(crate) network: NetworkMode,
    pub(crate) hostname: String,
    /// What runs at each start, if anything does.
    pub(crate) workload: Option<ExecRequest>,
    /// What every process of the workspace is given; it has no `argv` of its own.
    pub(crate) session: ExecRequest,
    /// Run once, before the first workload, in the image's shell.
    #[serde(default)]
    pub(crate) setup: Vec<String>,
    /// Copied in once, before the setup commands.
    #[serde(default)]
    pub(crate) files: Vec<HostFile>,
    /// The shell of setup commands and of `connect`, instead of `/bin/sh`.
    #[serde(default)]
    pub(crate) shell: Option<String>,
    #[serde(default)]
    pub(crate) disks: Vec<ExtraDisk>,
    #[serde(default)]
    pub(crate) publish: Vec<PublishedPort>,
    #[serde(default)]
    pub(crate) mediation: Vec<MediationRoute>,
    #[serde(default)]
    pub(crate) artifacts: Vec<DeclaredArtifact>,
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    #[serde(default)]
    pub(crate) health: Option<HealthCheck>,
}

#[derive(Serialize, Deserialize)]
struct Seal {
    format: u32,
    sha256: String,
}

impl Manifest {
    /// Reads and checks the manifest in `directory`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Damaged`] if it is not what was written.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let file = File::open(&path).context("open", &path)?;
        let mut bytes = Vec::new();
        file.take(MAX + 1)
            .read_to_end(&mut bytes)
            .context("read", &path)?;
        if bytes.len() as u64 > MAX {
            return Err(damaged(format!("it is larger than {MAX} bytes")));
        }
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| damaged("its first line has no end".to_owned()))?;
        let (first, body) = (&bytes[..end], &bytes[end + 1..]);
        let seal: Seal = serde_json::from_slice(first)
            .map_err(|error| damaged(format!("its first line is not understood: {error}")))?;
        if seal.format != FORMAT {
            return Err(damaged(format!(
                "it has format {}, and this microagent reads {FORMAT}",
                seal.format
            )));
        }
        let actual = files::sha256(body);
        let expected = seal_line(&actual)
            .map_err(io::Error::from)
            .context("read", &path)?;
        if first != expected {
            return Err(damaged(format!(
                "its content has the SHA-256 {actual}, and {} was recorded",
                seal.sha256.chars().take(64).collect::<String>()
            )));
        }
        serde_json::from_slice(body)
            .map_err(|error| damaged(format!("it is not understood: {error}")))
    }

    /// Writes it into `directory`, whole or not at all.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MANIFEST);
        let durability = if self.ephemeral {
            Durability::Unsynced
        } else {
            Durability::Synced
        };
        let mut body = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .context("describe", &path)?;
        body.push(b'\n');
        let mut bytes = seal_line(&files::sha256(&body))
            .map_err(io::Error::from)
            .context("describe", &path)?;
        bytes.push(b'\n');
        bytes.append(&mut body);
        files::write(&path, &bytes, durability)
    }

    /// The most bytes its machine can hold, on its disks and in its memory.
    pub(crate) fn capacity(&self) -> u64 {
        let disks = self.disks.iter().map(|disk| disk.path.metadata());
        let on_disks: u64 = disks
            .map(|found| found.map_or(0, |metadata| metadata.len()))
            .chain(microagent_disk::size_bytes(&self.parts.base_disk.path))
            .sum();
        let mib = u64::from(self.resources.size_mib.0) + u64::from(self.resources.memory_mib.0);
        on_disks.saturating_add(mib << 20)
    }

    /// A setup command as the guest is asked to run it.
    pub(crate) fn setup_request(&self, script: &str) -> ExecRequest {
        ExecRequest {
            role: ExecRole::Setup,
            argv: command::shell(self.shell.as_deref(), script),
            ..self.session.clone()
        }
    }
}

fn seal_line(sha256: &str) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Seal {
        format: FORMAT,
        sha256: sha256.to_owned(),
    })
}
