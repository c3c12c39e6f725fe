//! What carries `user` networks.

use std::time::{Duration, Instant};

use microagent_protocol::supervisor::{HostCheck, Verdict};

use super::{
    CHECK_NETWORK, ProbeHost,
    cache::{Cache, Kept},
    check as outcome,
};
use crate::{
    Error,
    network::{Passt, REMEDY},
};

/// What carries `user` networks: a passt that answered, or QEMU's own.
pub(super) fn check(host: &ProbeHost<'_>, cache: &mut Cache) -> (HostCheck, Option<Passt>) {
    let since = Instant::now();
    let without = |detail: String, remedy: Option<&str>| {
        let detail = format!(
            "{detail}; the network mode user is QEMU's own, in which the host's loopback is reached at the gateway"
        );
        let mut check = outcome(CHECK_NETWORK, since, Verdict::Degraded, detail);
        check.remedy = remedy.map(str::to_owned);
        check
    };
    let passt = match Passt::find(host.search_path) {
        Ok(passt) => passt,
        Err(error @ Error::ProgramMissing { .. }) => {
            // The remedy is part of its words already.
            return (without(error.to_string(), None), None);
        }
        Err(error) => return (without(error.to_string(), Some(REMEDY)), None),
    };
    cache.keep_passt(passt.path());
    let proved = match cache.verdict(CHECK_NETWORK, Duration::ZERO) {
        Some(_) => Ok(()),
        None => passt.prove(),
    };
    if let Err(error) = proved {
        // Not kept: a host that is offline now may be online when the next machine starts.
        let remedy =
            "passt needs a route out and unprivileged user namespaces; see docs/troubleshooting.md";
        return (without(error.to_string(), Some(remedy)), None);
    }
    let ways = if passt.ipv6() {
        "IPv4 and IPv6"
    } else {
        "IPv4"
    };
    let detail = format!("passt at {} answers; {ways}", passt.path().display());
    cache.keep_verdict(CHECK_NETWORK, &Kept::ready(detail.clone()));
    (
        outcome(CHECK_NETWORK, since, Verdict::Ready, detail),
        Some(passt),
    )
}
