//! What a machine is given, and the sizes that have a name.

use microagent_protocol::Mebibytes;
use serde::{Deserialize, Serialize};

/// A size of machine that has a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// 256 MiB of memory, 1 vCPU, 512 MiB of disk.
    Tiny,
    /// 512 MiB of memory, 2 vCPUs, 1,024 MiB of disk.
    #[default]
    Small,
    /// 2,048 MiB of memory, 2 vCPUs, 8,192 MiB of disk.
    Medium,
    /// 4,096 MiB of memory, 4 vCPUs, 16,384 MiB of disk.
    Large,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Small, Self::Medium, Self::Large];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    /// What a machine of this size is given.
    #[must_use]
    pub const fn resources(self) -> Resources {
        let (memory, vcpus, disk) = self.sizes();
        Resources {
            memory_mib: Mebibytes(memory),
            cpu_count: vcpus,
            size_mib: Mebibytes(disk),
        }
    }

    /// Its name and what it stands for.
    #[must_use]
    pub const fn describe(self) -> ProfileInfo {
        ProfileInfo {
            name: self,
            resources: self.resources(),
        }
    }

    /// Memory, number of vCPUs and disk.
    pub(crate) const fn sizes(self) -> (u32, u32, u32) {
        match self {
            Self::Tiny => (256, 1, 512),
            Self::Small => (512, 2, 1024),
            Self::Medium => (2048, 2, 8192),
            Self::Large => (4096, 4, 16384),
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a profile's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a profile; use tiny, small, medium or large")]
pub struct InvalidProfile {
    input: String,
}

impl std::str::FromStr for Profile {
    type Err = InvalidProfile;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.as_str() == input)
            .ok_or_else(|| InvalidProfile {
                input: input.to_owned(),
            })
    }
}

/// What a machine is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Guest memory in MiB.
    pub memory_mib: Mebibytes,
    /// vCPUs.
    pub cpu_count: u32,
    /// The most the workspace may write, in MiB.
    pub size_mib: Mebibytes,
}

/// A profile and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProfileInfo {
    /// Its name.
    pub name: Profile,
    /// What a machine of it is given.
    #[serde(flatten)]
    pub resources: Resources,
}
