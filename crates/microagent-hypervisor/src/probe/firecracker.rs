//! Firecracker and its jailer: whether they are there, and whether a guest boots under them.

use std::time::Instant;

use microagent_protocol::supervisor::{HostCheck, HostQuery, Verdict};

use super::{
    CHECK_FIRECRACKER, KVM_LIMIT, NO_KERNEL, ProbeHost, cache::Cache, check as outcome, kvm,
    patience, verdict_on_kvm,
};
use crate::{
    boot,
    firecracker::{Firecracker, FirecrackerBinary, JailerBinary, REMEDY},
};

/// Firecracker is looked at where it can matter: where it is there, and KVM opens.
pub(super) fn check(
    host: &ProbeHost<'_>,
    query: &HostQuery,
    cache: &mut Cache,
) -> (HostCheck, Option<Firecracker>) {
    let since = Instant::now();
    let name = CHECK_FIRECRACKER;
    let unusable = |detail: String, remedy: String| {
        let mut check = outcome(name, since, Verdict::Unusable, detail);
        check.remedy = Some(remedy);
        check
    };
    let found = FirecrackerBinary::find(host.firecracker, host.search_path, host.libexec);
    let found = found.and_then(|binary| {
        let jailer = JailerBinary::find(host.jailer, &binary, host.search_path)?;
        Ok((binary, jailer))
    });
    let (binary, jailer) = match found {
        Ok(found) => found,
        Err(error) => {
            let remedy = REMEDY.to_owned();
            return (unusable(error.to_string(), remedy), None);
        }
    };
    let program = binary.path().to_owned();
    cache.keep_firecracker(&program, jailer.as_ref().map(JailerBinary::path));
    let by = jailer.as_ref().map_or_else(String::new, |jailer| {
        let path = jailer.path().display();
        format!(", its jailer {} at {path}", jailer.version())
    });
    let what = format!(
        "Firecracker {} at {}{by}",
        binary.version(),
        program.display()
    );
    let driver = Firecracker::new(binary).jailer(jailer);
    let device = match kvm::look() {
        Ok(device) => device,
        Err(kvm::Missing { reason, remedy }) => {
            return (unusable(format!("{what}; {reason}"), remedy), Some(driver));
        }
    };
    let limit = patience(query, KVM_LIMIT);
    if let Some(kept) = cache.verdict(name, limit) {
        return (kept.into_check(name, since), Some(driver));
    }
    let Some(guest) = &query.probe else {
        let detail = format!("{what}; not proved, as there is no kernel to boot yet");
        let mut check = outcome(name, since, Verdict::Degraded, detail);
        check.remedy = Some(NO_KERNEL.to_owned());
        return (check, Some(driver));
    };
    let booted = boot::until_hello(
        &driver.clone().start_limit(limit),
        &program,
        guest,
        host.runtime_dir,
        0,
        limit,
    );
    let (kept, lasting) = verdict_on_kvm(&what, device, limit, booted);
    if lasting {
        cache.keep_verdict(name, &kept);
    }
    (kept.into_check(name, since), Some(driver))
}
