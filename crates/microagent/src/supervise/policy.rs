//! When a workspace that ended is started again.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// When `supervise` starts a workspace again that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never: it is not even started.
    #[default]
    Never,
    /// When it failed.
    OnFailure,
    /// Whenever it ended.
    Always,
}

impl RestartPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Never, Self::OnFailure, Self::Always];

    /// The pause before the first restart.
    pub const FIRST_BACKOFF: Duration = Duration::from_secs(1);

    /// The longest pause before a restart; each is twice the last one until then.
    pub const MAX_BACKOFF: Duration = Duration::from_secs(60);

    /// A machine that was up for this long makes the next pause the first one again.
    pub const STEADY: Duration = Duration::from_secs(60);

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a restart policy's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a restart policy; use never, on-failure or always")]
pub struct InvalidRestartPolicy {
    input: String,
}

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == input)
            .ok_or_else(|| InvalidRestartPolicy {
                input: input.to_owned(),
            })
    }
}
