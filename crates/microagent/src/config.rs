//! Everything the library is told about its surroundings. It looks nothing up by itself:
//! no environment, no home directory, no terminal.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_image::ProxyOptions;
use microagent_protocol::{ConfinementMode, LogFilter};

use crate::error::Error;

/// The file name a supervisor program goes by.
pub const SUPERVISOR_PROGRAM: &str = "microagent-supervisor";

/// The file name of the one executable, which is also a supervisor.
const EXECUTABLE: &str = "microagent";

/// Where the supervisor program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SupervisorProgram {
    /// This file: the `microagent` executable or a program that calls `microagent_supervisor::entry()`.
    At(PathBuf),
    /// The running program itself, which must call `microagent_supervisor::entry()` first thing in `main`.
    ThisProgram,
}

impl SupervisorProgram {
    /// Looks for an installed supervisor: beside `beside`, in `../libexec` of it, then in the
    /// directories of `path` (the value of `PATH`).
    ///
    /// # Errors
    /// [`Error::SupervisorMissing`] with every place that was looked at.
    pub fn find(beside: Option<&Path>, path: Option<&OsStr>) -> Result<Self, Error> {
        let own = beside
            .into_iter()
            .flat_map(|directory| [directory.to_owned(), directory.join("../libexec")]);
        let listed = path
            .into_iter()
            .flat_map(std::env::split_paths)
            .filter(|p| p.is_absolute());
        let mut searched = Vec::new();
        for directory in own.chain(listed) {
            for name in [SUPERVISOR_PROGRAM, EXECUTABLE] {
                let candidate = directory.join(name);
                if is_executable(&candidate) {
                    return Ok(Self::At(candidate));
                }
            }
            searched.push(directory);
        }
        Err(Error::SupervisorMissing { searched })
    }
}

pub(crate) use microagent_host::fs::is_executable;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A boot, from the VMM's start until the guest is ready: the first attempt gets a third of
    /// this, the one retry on another machine type all of it.
    pub boot: Duration,
    /// Each guest that is booted to prove what this host can run, where that is longer than usual
    /// (5 s with KVM, 30 s emulated).
    pub probe: Option<Duration>,
    /// From starting the supervisor program to its answer.
    pub supervisor: Duration,
    /// How long a workload may take to end after it was asked to, when a kept workspace is shut down.
    pub grace: Duration,
    /// From the request to end a machine to its end.
    pub shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            probe: None,
            supervisor: Duration::from_secs(120),
            grace: Duration::from_secs(10),
            shutdown: Duration::from_secs(20),
        }
    }
}

/// What [`crate::Microagent`] works with.
///
/// ```
/// use microagent::{Config, SupervisorProgram};
///
/// let config = Config::new("/var/lib/agents", "/run/agents", SupervisorProgram::ThisProgram)
///     .insecure_registry("registry.internal:5000");
/// assert_eq!(config.state_dir.to_str(), Some("/var/lib/agents"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Images, kernels and workspaces. Absolute; made (0700) when it is missing.
    pub state_dir: PathBuf,
    /// Sockets of running machines. Absolute and short: a socket's path may have 107 bytes.
    /// Made (0700) when it is missing; must belong to this user alone.
    pub runtime_dir: PathBuf,
    /// The supervisor program.
    pub supervisor: SupervisorProgram,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Registries (`host[:port]`) that are spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Files in the form of Docker's `config.json` to take registry credentials from, after the own
    /// one (`auth.json` in the state directory); the first that has some for a registry wins.
    pub auth_files: Vec<PathBuf>,
    /// Where the credential helpers that these files name are looked for, in the form of `PATH`.
    pub helper_path: Option<OsString>,
    /// How long a credential helper may take; it may ask a person.
    pub helper_timeout: Duration,
    /// What is particular to some registries: the file `registries.toml`, if there is one.
    pub registries_file: Option<PathBuf>,
    /// Which requests to registries go through a proxy.
    pub proxy: ProxyOptions,
    /// How much a virtual machine monitor is held back: all this host can give, unless told otherwise.
    pub confinement: ConfinementMode,
    /// The most bytes of each output stream kept in a result.
    pub capture_limit: u32,
    /// The most bytes of console log kept (and as much again in one older file).
    pub console_limit: u32,
    /// What supervisors write into their logs: messages from `info` on unless told otherwise.
    pub log: Option<LogFilter>,
}

impl Config {
    /// The default settings around three places.
    #[must_use]
    pub fn new(
        state_dir: impl Into<PathBuf>,
        runtime_dir: impl Into<PathBuf>,
        supervisor: SupervisorProgram,
    ) -> Self {
        Self {
            state_dir: state_dir.into(),
            runtime_dir: runtime_dir.into(),
            supervisor,
            timeouts: Timeouts::default(),
            insecure_registries: Vec::new(),
            auth_files: Vec::new(),
            helper_path: None,
            helper_timeout: Duration::from_secs(60),
            registries_file: None,
            proxy: ProxyOptions::default(),
            confinement: ConfinementMode::Auto,
            capture_limit: 1024 * 1024,
            console_limit: 1024 * 1024,
            log: None,
        }
    }

    /// The same with another confinement of monitors.
    #[must_use]
    pub const fn confinement(mut self, mode: ConfinementMode) -> Self {
        self.confinement = mode;
        self
    }

    /// The same with one more registry that is spoken to in plain HTTP.
    #[must_use]
    pub fn insecure_registry(mut self, registry: impl Into<String>) -> Self {
        self.insecure_registries.push(registry.into());
        self
    }

    /// The same with one more file of registry credentials.
    #[must_use]
    pub fn auth_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.auth_files.push(path.into());
        self
    }

    /// The same with credential helpers from the directories of `path`.
    #[must_use]
    pub fn helper_path(mut self, path: impl Into<OsString>) -> Self {
        self.helper_path = Some(path.into());
        self
    }

    /// The same with the settings of registries in this file, which must exist when it is used.
    #[must_use]
    pub fn registries_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.registries_file = Some(path.into());
        self
    }

    /// The same with these proxies.
    #[must_use]
    pub fn proxy(mut self, proxy: ProxyOptions) -> Self {
        self.proxy = proxy;
        self
    }

    /// The same with other timeouts.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The same for a host whose guests take longer, or that is to give up sooner: a limit for boots
    /// and for the guests that prove what it can run.
    #[must_use]
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.timeouts.boot = limit;
        self.timeouts.probe = Some(limit);
        // A supervisor may prove as many ways to run a guest before it answers.
        let proofs = limit.saturating_mul(4);
        self.timeouts.supervisor = Timeouts::default().supervisor.saturating_add(proofs);
        self
    }

    /// The same with another limit for captured output, in bytes per stream.
    #[must_use]
    pub fn capture_limit(mut self, bytes: u32) -> Self {
        self.capture_limit = bytes;
        self
    }

    /// The same with supervisors that write these messages into their logs.
    #[must_use]
    pub fn log(mut self, filter: LogFilter) -> Self {
        self.log = Some(filter);
        self
    }

    /// The own credential file, which logins are kept in.
    pub(crate) fn own_auth_file(&self) -> PathBuf {
        self.state_dir.join("auth.json")
    }

    /// Every credential file, in the order in which they are looked into.
    pub(crate) fn credential_files(&self) -> Vec<PathBuf> {
        std::iter::once(self.own_auth_file())
            .chain(self.auth_files.iter().cloned())
            .collect()
    }

    pub(crate) fn images_dir(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    pub(crate) fn workspaces_dir(&self) -> PathBuf {
        self.state_dir.join("workspaces")
    }

    pub(crate) fn verified_dir(&self) -> PathBuf {
        self.state_dir.join("verified")
    }

    pub(crate) fn host_cache_dir(&self) -> PathBuf {
        self.state_dir.join("host")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_supervisor_is_found_beside_then_on_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let (bin, other) = (directory.path().join("bin"), directory.path().join("other"));
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        let path = std::env::join_paths([&other]).unwrap();

        let error = SupervisorProgram::find(Some(&bin), Some(&path)).unwrap_err();
        assert!(
            error.to_string().contains(other.to_str().unwrap()),
            "{error}"
        );

        let plain = bin.join(SUPERVISOR_PROGRAM);
        std::fs::write(&plain, "").unwrap();
        assert!(
            SupervisorProgram::find(Some(&bin), Some(&path)).is_err(),
            "it is not executable"
        );

        let listed = other.join(EXECUTABLE);
        std::fs::write(&listed, "").unwrap();
        std::fs::set_permissions(&listed, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            SupervisorProgram::find(Some(&bin), Some(&path)).unwrap(),
            SupervisorProgram::At(listed)
        );
        std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            SupervisorProgram::find(Some(&bin), Some(&path)).unwrap(),
            SupervisorProgram::At(plain)
        );
    }
}
