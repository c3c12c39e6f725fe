//! What a host was found to be able to run.

use serde::{Deserialize, Serialize};

use crate::launch::{Backend, Capabilities};

/// What this host can run, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostReport {
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// The backend that would be used, if any works.
    pub chosen: Option<Backend>,
    /// Why that one.
    pub reason: String,
    /// Everything that was looked at.
    pub checks: Vec<HostCheck>,
    /// Every backend there is.
    #[serde(default)]
    pub backends: Vec<BackendReport>,
}

/// A backend, as a host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BackendReport {
    /// Which.
    pub name: Backend,
    /// Whether it would run a machine here.
    pub usable: bool,
    /// What its machines can do, here or elsewhere.
    pub capabilities: Capabilities,
}

/// A verdict on one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works, and was seen to.
    Ready,
    /// It works less well than it could.
    Degraded,
    /// It does not work.
    Unusable,
}

/// One thing that was looked at by doing what a boot does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostCheck {
    /// A short stable name, such as `kvm`.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether nothing can run without it.
    pub required: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub ms: u64,
}
