//! One look at what a machine costs its host.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A sample of a running machine. What the host does not count is absent, never zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineStats {
    /// When it was taken.
    pub sampled_at: Timestamp,
    /// The VMM's process number.
    pub pid: u32,
    /// The VMM's processor time since its start, in milliseconds.
    pub cpu_ms: u64,
    /// The VMM's processor use over the time since the client's sample before this one, or over a
    /// short interval, in percent of one processor; may exceed 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// The VMM's resident memory in bytes.
    pub memory_bytes: u64,
    /// The supervisor's resident memory in bytes.
    pub supervisor_memory_bytes: u64,
    /// Bytes the VMM read from disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// Bytes the VMM wrote to disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write_bytes: Option<u64>,
    /// Sessions open in the guest.
    pub sessions: u32,
    /// Connections open over published ports and mediation routes.
    pub connections: u32,
}
