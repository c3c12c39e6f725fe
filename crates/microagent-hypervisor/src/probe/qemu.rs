//! QEMU: whether it is there, and whether a guest boots under it, emulated and with KVM.

use std::time::{Duration, Instant};

use microagent_protocol::supervisor::{HostCheck, HostQuery, ProbeGuest, Verdict};

use super::{
    CHECK_KVM, CHECK_QEMU, CHECK_TCG, Depth, KVM_LIMIT, NO_KERNEL, ProbeHost, TCG_LIMIT,
    boot::{self, Hello},
    cache::{Cache, Kept},
    check, kvm, patience, verdict_on_kvm,
};
use crate::{
    Error,
    qemu::{Accelerator, Qemu, QemuBinary, REMEDY},
};

/// The program itself.
pub(super) fn check_program(
    host: &ProbeHost<'_>,
    cache: &mut Cache,
) -> (HostCheck, Option<QemuBinary>) {
    let since = Instant::now();
    let found = QemuBinary::locate(host.search_path).and_then(|path| {
        cache
            .binary(&path)
            .map_or_else(|| QemuBinary::at(&path), Ok)
    });
    let outcome = found.and_then(|binary| {
        if host.depth == Depth::Prove {
            binary.check_devices()?;
        }
        Ok(binary)
    });
    match outcome {
        Ok(binary) => {
            cache.keep_binary(&binary);
            let detail = format!("QEMU {} at {}", binary.version(), binary.path().display());
            let mut check = check(CHECK_QEMU, since, Verdict::Ready, detail);
            check.required = true;
            (check, Some(binary))
        }
        Err(error) => {
            let mut check = check(CHECK_QEMU, since, Verdict::Unusable, error.to_string());
            check.required = true;
            check.remedy = Some(REMEDY.to_owned());
            (check, None)
        }
    }
}

/// A guest with KVM.
pub(super) fn check_kvm(
    host: &ProbeHost<'_>,
    query: &HostQuery,
    binary: &QemuBinary,
    cache: &mut Cache,
) -> HostCheck {
    let since = Instant::now();
    // Cheap, and may change while the host runs (groups, modules): never kept.
    let device = match kvm::look() {
        Ok(device) => device,
        Err(kvm::Missing { reason, remedy }) => {
            let mut check = check(CHECK_KVM, since, Verdict::Unusable, reason);
            check.remedy = Some(remedy);
            return check;
        }
    };
    let limit = patience(query, KVM_LIMIT);
    if let Some(kept) = cache.verdict(CHECK_KVM, limit) {
        return kept.into_check(CHECK_KVM, since);
    }
    let Some(guest) = &query.probe else {
        let mut check = check(
            CHECK_KVM,
            since,
            Verdict::Degraded,
            format!("{device}; not proved, as there is no kernel to boot yet"),
        );
        check.remedy = Some(NO_KERNEL.to_owned());
        return check;
    };
    let booted = boot_probe(host, binary, Accelerator::Kvm, guest, 0, limit);
    let (kept, lasting) = verdict_on_kvm(&device.to_string(), device, limit, booted);
    if lasting {
        cache.keep_verdict(CHECK_KVM, &kept);
    }
    kept.into_check(CHECK_KVM, since)
}

/// A guest that is emulated.
pub(super) fn check_emulation(
    host: &ProbeHost<'_>,
    query: &HostQuery,
    binary: &QemuBinary,
    tsc_khz: Option<u64>,
    cache: &mut Cache,
) -> HostCheck {
    let since = Instant::now();
    let limit = patience(query, TCG_LIMIT);
    if let Some(kept) = cache.verdict(CHECK_TCG, limit) {
        return kept.into_check(CHECK_TCG, since);
    }
    let accelerator = Accelerator::Tcg { tsc_khz };
    let guest = match (&query.probe, host.depth) {
        (Some(guest), Depth::Prove) => guest,
        (None, Depth::Prove) => {
            let mut check = check(
                CHECK_TCG,
                since,
                Verdict::Degraded,
                "not proved, as there is no kernel to boot yet",
            );
            check.remedy = Some(NO_KERNEL.to_owned());
            return check;
        }
        (_, Depth::Choose) => {
            return check(
                CHECK_TCG,
                since,
                Verdict::Degraded,
                "not proved by this check",
            );
        }
    };
    let first = boot_probe(host, binary, accelerator, guest, 0, limit);
    let kept = match first {
        Ok(hello) => Kept::ready(hello.to_string()),
        Err(first) => match boot_probe(host, binary, accelerator, guest, 1, limit) {
            Ok(hello) => Kept {
                verdict: Verdict::Degraded,
                detail: format!("{hello}, but only on the fallback machine type ({first})"),
                remedy: None,
                limit_ms: None,
            },
            Err(second) => Kept {
                verdict: Verdict::Unusable,
                detail: format!("a guest did not boot: {first}; on the fallback machine type: {second}"),
                remedy: Some(
                    "install a kernel for this architecture with `microagent kernel install`, and see that the host is not out of memory"
                        .to_owned(),
                ),
                limit_ms: None,
            },
        },
    };
    // Nothing in emulation depends on the host's boot: what failed may work next time.
    if kept.verdict != Verdict::Unusable {
        cache.keep_verdict(CHECK_TCG, &kept);
    }
    kept.into_check(CHECK_TCG, since)
}

/// Boots the probe guest until it says hello.
fn boot_probe(
    host: &ProbeHost<'_>,
    binary: &QemuBinary,
    accelerator: Accelerator,
    guest: &ProbeGuest,
    attempt: u32,
    limit: Duration,
) -> Result<Hello, Error> {
    let driver = Qemu::new(binary.clone(), accelerator).start_limit(limit);
    boot::until_hello(
        &driver,
        binary.path(),
        guest,
        host.runtime_dir,
        attempt,
        limit,
    )
}
