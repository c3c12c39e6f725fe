//! What a running workspace is ready for, signal by signal, as it was seen and not as it is hoped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// One thing a workspace can be ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum ReadinessSignal {
    /// The guest agent answered.
    GuestReady,
    /// The persistent shell can be started.
    ShellReady,
    /// A process was started in the guest and its end was seen.
    ExecReady,
    /// The workload's result is there.
    ResultReady,
    /// Every required mediation target answered.
    MediationReady,
}

impl ReadinessSignal {
    /// Every signal.
    pub const ALL: [Self; 5] = [
        Self::GuestReady,
        Self::ShellReady,
        Self::ExecReady,
        Self::ResultReady,
        Self::MediationReady,
    ];
}

/// Whether one thing is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Readiness {
    /// Whether it is.
    pub ready: bool,
    /// When that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Timestamp>,
    /// How it was seen, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Every signal's readiness.
pub type ReadinessReport = BTreeMap<ReadinessSignal, Readiness>;
