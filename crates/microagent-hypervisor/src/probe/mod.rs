//! What this host can run, proved by doing what a boot does. A device file
//! that opens proves nothing; a guest that said hello does.

mod cache;
mod confinement;
mod firecracker;
mod kvm;
mod network;
mod qemu;
mod select;

use std::{
    ffi::OsStr,
    path::Path,
    time::{Duration, Instant},
};

use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{HostCheck, HostQuery, HostReport, Verdict},
};

use self::cache::{Cache, Kept};
pub use self::select::select;
use crate::{
    Error, Hypervisor, boot,
    firecracker::Firecracker,
    measure_tsc_khz,
    network::Passt,
    qemu::{Accelerator, Qemu, QemuBinary},
    report::report,
};

/// How long a guest may take to say hello with KVM; a proved host takes under a second. A guest that
/// is stuck looks from outside like one that is slow (it uses its processor, and says nothing), so
/// that only whoever knows the host to be slow can give it more: [`HostQuery::probe_limit_ms`].
const KVM_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take under software emulation on a busy host, each machine type.
const TCG_LIMIT: Duration = Duration::from_secs(30);

/// The name of the check of the VMM itself.
pub const CHECK_QEMU: &str = "qemu";
/// The name of the check of KVM.
pub const CHECK_KVM: &str = "kvm";
/// The name of the check of Firecracker.
pub const CHECK_FIRECRACKER: &str = "firecracker";
/// The name of the check of what carries `user` networks.
pub const CHECK_NETWORK: &str = "network";
/// The name of the check of software emulation.
pub const CHECK_TCG: &str = "software-emulation";
/// The name of the check of what holds a VMM back.
pub const CHECK_CONFINEMENT: &str = "confinement";

/// How far a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// As far as a choice needs: KVM is proved where it is there, software
    /// emulation needs no proof before a boot that has a deadline of its own.
    Choose,
    /// Everything, software emulation too.
    Prove,
}

/// Where a probe looks and what it may use.
#[derive(Clone, Copy, Debug)]
pub struct ProbeHost<'a> {
    /// Where programs are looked for: the value of a `PATH` variable.
    pub search_path: &'a OsStr,
    /// Where Firecracker is, if that was said.
    pub firecracker: Option<&'a Path>,
    /// Where its jailer is, if that was said; `off` for none.
    pub jailer: Option<&'a Path>,
    /// A directory of programs to look for after `search_path`.
    pub libexec: Option<&'a Path>,
    /// An existing private directory (0700) with a short path for the probe's sockets.
    pub runtime_dir: &'a Path,
    /// How far to go.
    pub depth: Depth,
}

/// What a probe found.
#[derive(Clone, Debug)]
pub struct Probed {
    /// For people and programs; a backend is chosen as [`HostQuery::backend`] asks.
    pub report: HostReport,
    binary: Option<QemuBinary>,
    firecracker: Option<Firecracker>,
    passt: Option<Passt>,
    tsc_khz: Option<u64>,
}

impl Probed {
    /// The driver for a choice, a network and a number of disks, and why it was taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if nothing that was found fits the choice.
    pub fn driver(
        &self,
        choice: BackendChoice,
        network: NetworkMode,
        disks: usize,
    ) -> Result<(Box<dyn Hypervisor>, String), Error> {
        let (backend, reason) = select(choice, network, disks, &self.report.checks)?;
        if backend == Backend::Firecracker {
            let firecracker = self.firecracker.clone().ok_or_else(|| {
                Error::Unsupported("Firecracker was chosen, but none was found".to_owned())
            })?;
            let firecracker = firecracker.passt(self.passt.clone());
            return Ok((Box::new(firecracker), reason));
        }
        let binary = self
            .binary
            .clone()
            .ok_or_else(|| Error::Unsupported("QEMU was chosen, but none was found".to_owned()))?;
        let accelerator = if backend == Backend::QemuKvm {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg {
                tsc_khz: self.tsc_khz,
            }
        };
        let qemu = Qemu::new(binary, accelerator).passt(self.passt.clone());
        Ok((Box::new(qemu), reason))
    }
}

/// Looks at this host, and boots the probe guest as far as `host.depth` goes.
/// Verdicts are kept in [`HostQuery::cache_dir`] for this boot of the host, as
/// long as QEMU and the probe guest stay the same.
#[must_use]
pub fn probe(host: &ProbeHost<'_>, query: &HostQuery) -> Probed {
    let mut cache = Cache::open(
        query.cache_dir.as_deref(),
        query.probe.as_ref(),
        query.fresh,
    );
    let (qemu_check, binary) = qemu::check_program(host, &mut cache);
    let mut checks = vec![qemu_check];
    let tsc_khz = cache.tsc_khz().or_else(measure_tsc_khz);
    if let Some(khz) = tsc_khz {
        cache.keep_tsc_khz(khz);
    }
    if let Some(binary) = &binary {
        let kvm = qemu::check_kvm(host, query, binary, &mut cache);
        let kvm_ready = kvm.verdict == Verdict::Ready;
        checks.push(kvm);
        let mut tcg = qemu::check_emulation(host, query, binary, tsc_khz, &mut cache);
        tcg.required = !kvm_ready;
        checks.push(tcg);
    }
    let (firecracker_check, firecracker) = firecracker::check(host, query, &mut cache);
    checks.push(firecracker_check);
    let (network_check, passt) = network::check(host, &mut cache);
    checks.push(network_check);
    if host.depth == Depth::Prove {
        checks.push(confinement::check(host, binary.as_ref()));
    }
    cache.save();
    Probed {
        report: report(
            checks,
            query.backend,
            NetworkMode::User,
            |choice, network, checks| select(choice, network, 0, checks),
        ),
        binary,
        firecracker,
        passt,
        tsc_khz,
    }
}

/// The longer of two limits: this one, and what was asked for.
fn patience(query: &HostQuery, usual: Duration) -> Duration {
    usual.max(Duration::from_millis(query.probe_limit_ms.unwrap_or(0)))
}

/// What helps where nothing can be booted yet.
const NO_KERNEL: &str = "install a kernel with `microagent kernel install`, then ask again";

/// What comes of a guest that booted with KVM, or did not, by a program that is `what`; and whether
/// that holds until the host reboots.
fn verdict_on_kvm(
    what: &str,
    device: kvm::Device,
    limit: Duration,
    booted: Result<boot::Hello, Error>,
) -> (Kept, bool) {
    match booted {
        Ok(hello) => (Kept::ready(format!("{what}; {hello}")), true),
        Err(error) => {
            let late = matches!(error, Error::Timeout { .. });
            let remedy = match late {
                true => format!(
                    "{}; if this host is only slow, MICROAGENT_BOOT_TIMEOUT=2m gives guests that long",
                    device.remedy()
                ),
                false => device.remedy().to_owned(),
            };
            let kept = Kept {
                verdict: Verdict::Unusable,
                detail: format!("{what}; a guest did not boot with it: {error}"),
                remedy: Some(remedy),
                limit_ms: late.then(|| millis(limit)),
            };
            // A host that was only busy must not be without KVM until it reboots.
            (kept, !(device.hardware && late))
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn check(name: &str, since: Instant, verdict: Verdict, detail: impl Into<String>) -> HostCheck {
    HostCheck {
        name: name.to_owned(),
        verdict,
        required: false,
        detail: detail.into(),
        remedy: None,
        ms: millis(since.elapsed()),
    }
}
