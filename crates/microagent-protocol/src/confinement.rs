//! What a VMM is kept from: what was asked for, and what was measured.

use serde::{Deserialize, Serialize};

/// How much confinement a VMM gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfinementMode {
    /// All that this host can give; what is missing is told.
    #[default]
    Auto,
    /// All of it, or no machine.
    Required,
    /// What the VMM does by itself, and nothing else: for debugging one.
    Off,
}

impl std::str::FromStr for ConfinementMode {
    type Err = InvalidConfinementMode;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "auto" => Ok(Self::Auto),
            "required" => Ok(Self::Required),
            "off" => Ok(Self::Off),
            _ => Err(InvalidConfinementMode {
                input: input.to_owned(),
            }),
        }
    }
}

impl std::fmt::Display for ConfinementMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Required => "required",
            Self::Off => "off",
        })
    }
}

/// Not a mode of confinement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not a mode of confinement; use auto (what this host can give), required (all or no machine) or off"
)]
pub struct InvalidConfinementMode {
    input: String,
}

/// One thing that holds a VMM back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConfinementLayer {
    /// It can gain no privilege by executing a program.
    NoNewPrivileges,
    /// It runs with no capability of the superuser.
    NoCapabilities,
    /// Its own seccomp filter is on.
    SystemCalls,
    /// Landlock: it reaches only the files of its machine.
    Files,
    /// Landlock: it can neither listen on nor connect to TCP ports.
    Tcp,
    /// Landlock: it can signal no process outside, nor reach abstract Unix sockets.
    Signals,
    /// A user namespace: whatever it may become, it is nobody outside.
    Users,
    /// A mount namespace: a root with its machine's files and a few devices, and nothing else.
    Mounts,
    /// A PID namespace: it sees no process but itself.
    Processes,
    /// An IPC namespace.
    Ipc,
    /// A UTS namespace: the host's name is not known to it.
    HostName,
    /// A network namespace: it has no network of the host.
    Network,
    /// cgroup v2: limits for its memory, processors and processes.
    Limits,
    /// A user of its own, which has no other file or process of the host; a jailer gives it one.
    OwnUser,
}

impl ConfinementLayer {
    /// Whether [`ConfinementMode::Required`] demands it. TCP and signals are held back by the
    /// namespaces as well, limits are there only where somebody delegated them, and a user of its own
    /// is there only instead of a user namespace and Landlock.
    #[must_use]
    pub const fn is_required(self) -> bool {
        !matches!(
            self,
            Self::Tcp | Self::Signals | Self::Limits | Self::OwnUser
        )
    }
}

impl std::fmt::Display for ConfinementLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoNewPrivileges => "no new privileges",
            Self::NoCapabilities => "no capabilities",
            Self::SystemCalls => "system call filter",
            Self::Files => "its own files only (Landlock)",
            Self::Tcp => "no TCP (Landlock)",
            Self::Signals => "no signals outside (Landlock)",
            Self::Users => "user namespace",
            Self::Mounts => "mount namespace with a root of its own",
            Self::Processes => "PID namespace",
            Self::Ipc => "IPC namespace",
            Self::HostName => "UTS namespace",
            Self::Network => "network namespace",
            Self::Limits => "cgroup limits",
            Self::OwnUser => "a user of its own (jailer)",
        })
    }
}

/// A layer that is not in force, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MissingLayer {
    /// Which.
    pub layer: ConfinementLayer,
    /// Why not.
    pub reason: String,
}

/// What holds one VMM back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Confinement {
    /// What was seen to be in force.
    pub in_force: Vec<ConfinementLayer>,
    /// What is not.
    pub missing: Vec<MissingLayer>,
}

impl Confinement {
    /// Whether a layer is in force.
    #[must_use]
    pub fn has(&self, layer: ConfinementLayer) -> bool {
        self.in_force.contains(&layer)
    }

    /// The missing layers that [`ConfinementMode::Required`] demands, in words.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let words: Vec<String> = self
            .missing
            .iter()
            .filter(|missing| missing.layer.is_required())
            .map(|missing| format!("{}: {}", missing.layer, missing.reason))
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// What is in force.
impl std::fmt::Display for Confinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.in_force.is_empty() {
            return f.write_str("nothing");
        }
        for (at, layer) in self.in_force.iter().enumerate() {
            write!(f, "{}{layer}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
