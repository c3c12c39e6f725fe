//! The driver of a Mac. Never run: no Mac was there.

use microagent_hypervisor::apple_vz::probe;
use microagent_protocol::{
    LaunchSpec,
    supervisor::{ErrorKind, ErrorReport, HostQuery, HostReport, ProbeGuest},
};

use super::{Backends, Chosen, HostBackends, place::ProbePlace};
use crate::Error;

impl Backends for HostBackends {
    /// By what the framework says; the boot has a deadline of its own.
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        let query = HostQuery {
            backend: spec.backend,
            probe: Some(ProbeGuest {
                kernel: spec.kernel.clone(),
                initramfs: spec.initramfs.clone(),
            }),
            cache_dir: spec.host_cache.clone(),
            fresh: false,
            probe_limit_ms: spec.probe_limit_ms,
        };
        let (hypervisor, reason) = probe(&query, None)
            .driver(spec.backend, spec.network)
            .map_err(|error| ErrorReport::new(ErrorKind::Unsupported, error.to_string()))?;
        Ok(Chosen { hypervisor, reason })
    }

    fn host(&self, query: &HostQuery) -> Result<HostReport, ErrorReport> {
        let place = ProbePlace::new()
            .map_err(|error| Error::file("make", std::env::temp_dir())(error).report())?;
        Ok(probe(query, Some(place.path())).report)
    }
}
