//! What holds a monitor back.

use std::time::Instant;

use microagent_protocol::supervisor::{HostCheck, Verdict};

use super::{CHECK_CONFINEMENT, ProbeHost, check as outcome};
use crate::qemu::{QemuBinary, confinement_of_idle};

/// What holds a monitor back here: one without a machine is started as any other, and looked at.
pub(super) fn check(host: &ProbeHost<'_>, binary: Option<&QemuBinary>) -> HostCheck {
    let since = Instant::now();
    let name = CHECK_CONFINEMENT;
    let Some(binary) = binary else {
        let detail = "not looked at, as there is no monitor to start";
        return outcome(name, since, Verdict::Degraded, detail);
    };
    let found = match confinement_of_idle(binary, host.runtime_dir) {
        Ok(found) => found,
        Err(error) => return outcome(name, since, Verdict::Unusable, error.to_string()),
    };
    let gaps: Vec<String> = found
        .missing
        .iter()
        .map(|gap| format!(". Not by {}: {}", gap.layer, gap.reason))
        .collect();
    let detail = format!("a monitor is held back by: {found}{}", gaps.concat());
    if found.shortfall().is_none() {
        return outcome(name, since, Verdict::Ready, detail);
    }
    let mut check = outcome(name, since, Verdict::Degraded, detail);
    check.remedy = Some(
        "Landlock: Linux 5.13 or newer with landlock in the lsm= list; namespaces: Linux 5.12 or newer, \
         and unprivileged user namespaces allowed"
            .to_owned(),
    );
    check
}
