//! A host that no driver is written for yet.

use microagent_protocol::{
    LaunchSpec,
    supervisor::{ErrorKind, ErrorReport, HostQuery, HostReport},
};

use super::{Backends, Chosen, HostBackends};

impl Backends for HostBackends {
    fn choose(&self, _spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        Err(none())
    }

    fn host(&self, _query: &HostQuery) -> Result<HostReport, ErrorReport> {
        Err(none())
    }
}

fn none() -> ErrorReport {
    ErrorReport::new(
        ErrorKind::Unsupported,
        format!(
            "no driver runs machines on {} yet; run this on Linux",
            std::env::consts::OS
        ),
    )
}
