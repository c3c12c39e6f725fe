//! Mediation routes: vsock ports whose connections end at a server of the host.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use microagent_hypervisor::hybrid;
use microagent_protocol::{MediationRoute, Readiness};

use super::{links::Link, target};
use crate::{Error, peer};

/// How long a target may take to answer before a machine is booted.
const LAUNCH_LIMIT: Duration = Duration::from_secs(5);

/// How long a target may take to answer when somebody asks how the machine is.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// How long a target may take to answer a connection of the guest.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Listens for the guest's connections to `route`.
pub(super) fn listen(uds: &Path, route: &MediationRoute) -> Result<UnixListener, Error> {
    let failed = |source| Error::System {
        action: "listen for a mediation route",
        source,
    };
    let listener = hybrid::listen(uds, route.port.into()).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Tries every target at once, for the time of the slowest.
fn probe(routes: &[MediationRoute], limit: Duration) -> Vec<io::Result<()>> {
    thread::scope(|scope| {
        let probes: Vec<_> = routes
            .iter()
            .map(|route| scope.spawn(move || target::probe(&route.target, limit)))
            .collect();
        probes
            .into_iter()
            .map(|probe| {
                probe
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the probe panicked")))
            })
            .collect()
    })
}

/// Refuses a launch whose required targets do not answer.
///
/// # Errors
/// [`Error::MediationUnreachable`], naming the first of them.
pub(super) fn check(routes: &[MediationRoute]) -> Result<(), Error> {
    for (route, reached) in routes.iter().zip(probe(routes, LAUNCH_LIMIT)) {
        match reached {
            Err(source) if route.required => {
                return Err(Error::MediationUnreachable {
                    route: route.to_string(),
                    source,
                });
            }
            Err(error) => tracing::info!("the optional mediation {route} is not there: {error}"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Whether every target answers now; `None` without routes.
pub(super) fn readiness(routes: &[MediationRoute]) -> Option<Readiness> {
    if routes.is_empty() {
        return None;
    }
    let reached = probe(routes, STATUS_LIMIT);
    let silent = |required: bool| {
        let words: Vec<_> = routes
            .iter()
            .zip(&reached)
            .filter(|(route, _)| route.required == required)
            .filter_map(|(route, reached)| {
                let error = reached.as_ref().err()?;
                Some(format!("{route} does not answer: {error}"))
            })
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    };
    let (error, missing) = (silent(true), silent(false));
    let ready = error.is_none() && missing.is_none();
    let all = || format!("{} of {} targets answer", routes.len(), routes.len());
    Some(Readiness {
        ready,
        observed_at: Some(SystemTime::now().into()),
        detail: missing.or_else(|| ready.then(all)),
        error,
    })
}

/// Carries one connection of the guest to its target.
pub(super) fn carry(guest: UnixStream, route: &MediationRoute, link: &Link) {
    let carried = || -> io::Result<()> {
        peer::check_machine(&guest)?;
        let cut = || io::Error::from(io::ErrorKind::NotConnected);
        let guest = link.hold(guest).ok_or_else(cut)?;
        let server = target::connect(&route.target, CONNECT_LIMIT)?;
        let server = link.hold(server).ok_or_else(cut)?;
        microagent_relay::join(&guest, &server)
    };
    if let Err(error) = carried() {
        tracing::debug!("a connection to {route} ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_required_target_that_is_silent_is_an_error_and_an_optional_one_is_not() {
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = there.local_addr().unwrap().port();
        let reachable: MediationRoute = format!("2048=127.0.0.1:{port}").parse().unwrap();
        let mut silent: MediationRoute = "2049=unix:/no/such/socket".parse().unwrap();

        assert_eq!(readiness(&[]), None);
        check(std::slice::from_ref(&reachable)).unwrap();
        let ready = readiness(std::slice::from_ref(&reachable)).unwrap();
        assert!(ready.ready && ready.error.is_none() && ready.observed_at.is_some());

        let refusal = check(&[reachable.clone(), silent.clone()])
            .unwrap_err()
            .report();
        assert!(
            refusal.message.contains("2049=unix:/no/such/socket"),
            "{refusal}"
        );
        assert!(refusal.remedy.unwrap().contains("optional"));
        let broken = readiness(&[reachable.clone(), silent.clone()]).unwrap();
        assert!(!broken.ready && broken.error.unwrap().contains("2049"));

        silent.required = false;
        check(&[reachable.clone(), silent.clone()]).unwrap();
        let degraded = readiness(&[reachable, silent]).unwrap();
        assert!(!degraded.ready && degraded.error.is_none());
        assert!(degraded.detail.unwrap().contains("2049"));
    }
}
