//! What tells whether a running workspace is well.

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A probe of a running workspace, and how often and how patiently it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is done.
    pub probe: HealthProbe,
    /// From the end of one probe to the next, in seconds.
    pub interval_seconds: NonZeroU32,
    /// The most a probe may take, in seconds.
    pub timeout_seconds: NonZeroU32,
    /// How many probes must fail one after the other.
    pub retries: NonZeroU32,
    /// How long after the guest is ready the first probe is made, in seconds.
    pub start_period_seconds: u32,
}

impl HealthCheck {
    /// [`Self::interval_seconds`] as a duration.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.interval_seconds.get()))
    }

    /// [`Self::timeout_seconds`] as a duration.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_seconds.get()))
    }

    /// [`Self::start_period_seconds`] as a duration.
    #[must_use]
    pub fn start_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.start_period_seconds))
    }
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// Runs this in the guest; well is exit code 0.
    Exec(Vec<String>),
    /// Asks an HTTP server in the guest; well is a status from 200 to 399.
    HttpGet {
        /// The server's port in the guest; it must be published.
        port: NonZeroU16,
        /// What is asked for, with its leading slash.
        path: String,
    },
}
