//! Choosing a backend: the one place that knows which drivers there are.

#[cfg(target_os = "macos")]
mod apple;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod place;
#[cfg(target_os = "linux")]
mod proved;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod unsupported;

use microagent_hypervisor::Hypervisor;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use microagent_protocol::supervisor::ProbeGuest;
use microagent_protocol::{
    LaunchSpec,
    supervisor::{ErrorReport, HostQuery, HostReport},
};

/// A driver that was chosen, and why.
pub struct Chosen {
    /// The driver.
    pub hypervisor: Box<dyn Hypervisor>,
    /// Why this one, for people.
    pub reason: String,
}

/// The drivers of this host. [`crate::entry`] uses the real ones; a test can
/// bring its own to [`crate::entry_with`].
pub trait Backends: Send + Sync {
    /// The driver to use for `spec`.
    ///
    /// # Errors
    /// If the asked-for backend does not work here, or none does.
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport>;

    /// What this host can run.
    ///
    /// # Errors
    /// If the question cannot be answered; an unusable host is no error.
    fn host(&self, query: &HostQuery) -> Result<HostReport, ErrorReport>;

    /// Whether a supervisor begins as a program anew, and not as a copy of the process that was launched: in a
    /// copied process Apple's frameworks must not be used.
    fn begin_anew(&self) -> bool {
        cfg!(target_os = "macos")
    }
}

/// The drivers this host has.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostBackends;

/// What is asked of a host that is to start `spec`.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn query_to_start(spec: &LaunchSpec) -> HostQuery {
    HostQuery {
        backend: spec.backend,
        probe: Some(ProbeGuest {
            kernel: spec.kernel.clone(),
            initramfs: spec.initramfs.clone(),
        }),
        cache_dir: spec.host_cache.clone(),
        fresh: false,
        probe_limit_ms: spec.probe_limit_ms,
    }
}
