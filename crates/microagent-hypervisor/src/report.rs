//! What a host can run, in one document.

use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{BackendReport, HostCheck, HostReport},
};

use crate::Error;

/// The report of what `checks` found: which backend `choice` and `network` get by `select`, and which could be named.
pub(crate) fn report(
    checks: Vec<HostCheck>,
    choice: BackendChoice,
    network: NetworkMode,
    select: impl Fn(BackendChoice, NetworkMode, &[HostCheck]) -> Result<(Backend, String), Error>,
) -> HostReport {
    let (chosen, reason) = match select(choice, network, &checks) {
        Ok((backend, reason)) => (Some(backend), reason),
        Err(error) => (None, error.to_string()),
    };
    let backends = Backend::ALL.map(|name| BackendReport {
        name,
        usable: select(BackendChoice::Only(name), NetworkMode::Isolated, &checks).is_ok(),
        capabilities: name.capabilities(),
    });
    HostReport {
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        chosen,
        reason,
        checks,
        backends: backends.into(),
    }
}
