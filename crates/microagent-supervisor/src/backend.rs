//! Choosing a backend: the one place that knows which drivers there are.

use std::ffi::OsString;

use microagent_hypervisor::Hypervisor;
use microagent_protocol::{
    Backend, BackendChoice, LaunchSpec,
    supervisor::{ErrorKind, ErrorReport, HostQuery, HostReport},
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
}

/// The drivers this host has.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostBackends;

impl Backends for HostBackends {
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        use microagent_hypervisor::qemu::{Accelerator, Qemu, QemuBinary};
        let missing = |error: microagent_hypervisor::Error| {
            ErrorReport::new(ErrorKind::Unsupported, error.to_string())
        };
        if spec.backend == BackendChoice::Only(Backend::QemuKvm) {
            return Err(ErrorReport::new(
                ErrorKind::Unsupported,
                "qemu-kvm was not proved to work on this host",
            ));
        }
        let binary = QemuBinary::find(&search_path()).map_err(missing)?;
        let tsc_khz = microagent_hypervisor::measure_tsc_khz();
        Ok(Chosen {
            hypervisor: Box::new(Qemu::new(binary, Accelerator::Tcg { tsc_khz })),
            reason: "software emulation needs nothing of the host".to_owned(),
        })
    }

    fn host(&self, _: &HostQuery) -> Result<HostReport, ErrorReport> {
        Err(ErrorReport::new(
            ErrorKind::Unsupported,
            "hosts are not probed yet",
        ))
    }
}

/// Where programs are looked for.
fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
}
