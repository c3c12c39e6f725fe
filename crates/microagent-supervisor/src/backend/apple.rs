//! The driver of a Mac. Never run: no Mac was there.

use microagent_hypervisor::apple_vz::probe;
use microagent_protocol::{
    LaunchSpec,
    supervisor::{ErrorKind, ErrorReport, HostQuery, HostReport},
};

use super::{Backends, Chosen, HostBackends, place::ProbePlace, query_to_start};
use crate::Error;

impl Backends for HostBackends {
    /// By what the framework says; the boot has a deadline of its own.
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        let (hypervisor, reason) = probe(&query_to_start(spec), None)
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
