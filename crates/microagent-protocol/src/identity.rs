//! Which process a record means, even after process numbers were reused.

use serde::{Deserialize, Serialize};

/// A process that can be told from every other one this host has ever run: a
/// process number alone is reused, so the start time and the boot go with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessIdentity {
    /// The process number.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// The boot it belongs to: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}
