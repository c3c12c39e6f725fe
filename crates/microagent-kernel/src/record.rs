//! What is written down about an installed kernel.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use crate::image::Architecture;
use crate::source::Provenance;

/// Version of the manifest's layout.
pub(crate) const MANIFEST_FORMAT: u32 = 1;

/// An installed kernel, as its manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// Version of this layout.
    pub format: u32,
    /// Name in the store: the release and the beginning of a digest over everything installed.
    pub id: String,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// The kernel's own description of itself: release, builder, build date.
    pub version: String,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// SHA-256 of `vmlinux`, lower-case hexadecimal.
    pub sha256: String,
    /// Size of `vmlinux` in bytes.
    pub size: u64,
    /// Where it came from.
    pub provenance: Provenance,
    /// Modules for the guest to load, in this order.
    pub modules: Vec<ModuleRecord>,
    /// Drivers the guest wants that need no loading.
    pub built_in: Vec<String>,
    /// Drivers the guest would use, but this kernel does not have.
    pub absent: Vec<String>,
    /// Whether the required drivers are known to be there. A kernel file without modules and without an embedded
    /// configuration cannot be judged before it boots.
    pub drivers_verified: bool,
    /// Whether this kernel loads only signed modules, or may: modules keep their signatures then.
    pub module_signatures_required: bool,
    /// When it was installed (RFC 3339 in the manifest).
    #[serde(with = "rfc3339")]
    pub installed_at: SystemTime,
}

/// One module of an installed kernel, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Name as the kernel knows it, with underscores; its file is `modules/<name>.ko`.
    pub name: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Size of the file in bytes.
    pub size: u64,
}

/// The initramfs for one kernel and one guest agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// The file, in the kernel's directory.
    pub path: std::path::PathBuf,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Size of the file in bytes.
    pub size: u64,
}

/// A difference between what was installed and what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// File, relative to the kernel's directory.
    pub file: String,
    /// Digest recorded at installation.
    pub expected: String,
    /// Digest of what is there; `None` if the file is gone.
    pub found: Option<String>,
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct KernelList {
    /// Usable kernels, the most recently installed first.
    pub kernels: Vec<KernelRecord>,
    /// Why each of the others is not usable.
    pub damaged: Vec<crate::KernelError>,
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(de::Error::custom)
    }
}
