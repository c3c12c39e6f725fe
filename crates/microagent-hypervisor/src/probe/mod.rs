//! What this host can run, proved by doing what a boot does. A device file
//! that opens proves nothing; a guest that said hello does.

mod boot;
mod cache;
mod kvm;

use std::{
    ffi::OsStr,
    path::Path,
    time::{Duration, Instant},
};

use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{BackendReport, HostCheck, HostQuery, HostReport, ProbeGuest, Verdict},
};

use self::cache::{Cache, Kept};
use crate::{
    Error, Hypervisor,
    firecracker::{Firecracker, FirecrackerBinary, JailerBinary},
    measure_tsc_khz,
    network::{self, Passt},
    qemu::{Accelerator, Qemu, QemuBinary, confinement_of_idle},
};

/// How long a guest may take to say hello with KVM; a proved host takes under a second.
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
    /// The driver for a choice and a network, and why it was taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if nothing that was found fits the choice.
    pub fn driver(
        &self,
        choice: BackendChoice,
        network: NetworkMode,
    ) -> Result<(Box<dyn Hypervisor>, String), Error> {
        let (backend, reason) = select(choice, network, &self.report.checks)?;
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

/// Chooses a backend by what was found, for a machine with this network.
///
/// # Errors
/// [`Error::Unsupported`] with the failing checks' remedies.
pub fn select(
    choice: BackendChoice,
    network: NetworkMode,
    checks: &[HostCheck],
) -> Result<(Backend, String), Error> {
    let find = |name: &str| checks.iter().find(|check| check.name == name);
    let works = |name: &str| find(name).is_some_and(|check| check.verdict != Verdict::Unusable);
    let refuse = |wanted: &str, names: &[&str]| {
        let why: Vec<String> = names
            .iter()
            .filter_map(|name| find(name))
            .filter(|check| check.verdict != Verdict::Ready)
            .map(|check| {
                let remedy = check.remedy.iter();
                // What a program's absence is told with has it already.
                let remedy = remedy.filter(|remedy| !check.detail.contains(remedy.as_str()));
                let remedy = remedy.map(|remedy| format!("; {remedy}"));
                format!(
                    "{}: {}{}",
                    check.name,
                    check.detail,
                    remedy.collect::<String>()
                )
            })
            .collect();
        Error::Unsupported(format!("{wanted} does not work here: {}", why.join(". ")))
    };
    let qemu = works(CHECK_QEMU);
    // Only what was seen to work counts as KVM; emulation needs no hardware.
    let kvm = qemu && find(CHECK_KVM).is_some_and(|check| check.verdict == Verdict::Ready);
    let tcg = qemu && works(CHECK_TCG);
    let passt = find(CHECK_NETWORK).is_some_and(|check| check.verdict == Verdict::Ready);
    let firecracker = find(CHECK_FIRECRACKER).is_some_and(|check| check.verdict == Verdict::Ready);
    match choice {
        // Without passt it has no network: a machine that needs one is QEMU's.
        BackendChoice::Auto if firecracker && (network == NetworkMode::Isolated || passt) => Ok((
            Backend::Firecracker,
            "KVM and Firecracker were proved to work".to_owned(),
        )),
        BackendChoice::Only(Backend::Firecracker) if firecracker => {
            Ok((Backend::Firecracker, "it was asked for".to_owned()))
        }
        BackendChoice::Only(Backend::Firecracker) => {
            Err(refuse("firecracker", &[CHECK_FIRECRACKER]))
        }
        BackendChoice::Auto | BackendChoice::Qemu if kvm => {
            Ok((Backend::QemuKvm, "KVM was proved to work".to_owned()))
        }
        BackendChoice::Auto | BackendChoice::Qemu if tcg => {
            let why = find(CHECK_KVM).map_or("KVM was not looked at", |check| &check.detail);
            Ok((
                Backend::QemuTcg,
                format!(
                    "software emulation: slower; the guest is fully isolated by a kernel of its own, \
                     but an emulator is a larger attack surface. No KVM: {why}"
                ),
            ))
        }
        BackendChoice::Auto | BackendChoice::Qemu => {
            Err(refuse("QEMU", &[CHECK_QEMU, CHECK_KVM, CHECK_TCG]))
        }
        BackendChoice::Only(Backend::QemuKvm) if kvm => {
            Ok((Backend::QemuKvm, "it was asked for".to_owned()))
        }
        BackendChoice::Only(Backend::QemuTcg) if tcg => {
            Ok((Backend::QemuTcg, "it was asked for".to_owned()))
        }
        BackendChoice::Only(Backend::QemuKvm) => Err(refuse("qemu-kvm", &[CHECK_QEMU, CHECK_KVM])),
        BackendChoice::Only(Backend::QemuTcg) => Err(refuse("qemu-tcg", &[CHECK_QEMU, CHECK_TCG])),
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
    let (qemu_check, binary) = check_qemu(host, &mut cache);
    let mut checks = vec![qemu_check];
    let tsc_khz = cache.tsc_khz().or_else(measure_tsc_khz);
    if let Some(khz) = tsc_khz {
        cache.keep_tsc_khz(khz);
    }
    if let Some(binary) = &binary {
        let kvm = check_kvm(host, query, binary, &mut cache);
        let kvm_ready = kvm.verdict == Verdict::Ready;
        checks.push(kvm);
        let mut tcg = check_tcg(host, query, binary, tsc_khz, &mut cache);
        tcg.required = !kvm_ready;
        checks.push(tcg);
    }
    let (firecracker_check, firecracker) = check_firecracker(host, query, &mut cache);
    checks.push(firecracker_check);
    let (network_check, passt) = check_network(host, &mut cache);
    checks.push(network_check);
    if host.depth == Depth::Prove {
        checks.push(check_confinement(host, binary.as_ref()));
    }
    cache.save();
    let (chosen, reason) = match select(query.backend, NetworkMode::User, &checks) {
        Ok((backend, reason)) => (Some(backend), reason),
        Err(error) => (None, error.to_string()),
    };
    let backends = Backend::ALL.map(|name| BackendReport {
        name,
        usable: select(BackendChoice::Only(name), NetworkMode::Isolated, &checks).is_ok(),
        capabilities: name.capabilities(),
    });
    Probed {
        report: HostReport {
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            chosen,
            reason,
            checks,
            backends: backends.into(),
        },
        binary,
        firecracker,
        passt,
        tsc_khz,
    }
}

fn check(name: &str, since: Instant, verdict: Verdict, detail: impl Into<String>) -> HostCheck {
    HostCheck {
        name: name.to_owned(),
        verdict,
        required: false,
        detail: detail.into(),
        remedy: None,
        ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

fn check_qemu(host: &ProbeHost<'_>, cache: &mut Cache) -> (HostCheck, Option<QemuBinary>) {
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
            check.remedy = Some(crate::qemu::REMEDY.to_owned());
            (check, None)
        }
    }
}

fn check_kvm(
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
    if let Some(kept) = cache.verdict(CHECK_KVM) {
        return kept.into_check(CHECK_KVM, since);
    }
    let Some(guest) = &query.probe else {
        let mut check = check(
            CHECK_KVM,
            since,
            Verdict::Degraded,
            format!("{device}; not proved, as there is no kernel to boot yet"),
        );
        check.remedy = Some("install a kernel, then ask again".to_owned());
        return check;
    };
    let (kept, lasting) = match boot_probe(host, binary, Accelerator::Kvm, guest, 0, KVM_LIMIT) {
        Ok(hello) => (Kept::ready(format!("{device}; {hello}")), true),
        Err(error) => (
            Kept {
                verdict: Verdict::Unusable,
                detail: format!("{device}; a guest did not boot with it: {error}"),
                remedy: Some(device.remedy().to_owned()),
            },
            // A host that was only busy must not be without KVM until it reboots.
            !(device.hardware && matches!(error, Error::Timeout { .. })),
        ),
    };
    if lasting {
        cache.keep_verdict(CHECK_KVM, &kept);
    }
    kept.into_check(CHECK_KVM, since)
}

/// Firecracker is looked at where it can matter: where it is there, and KVM opens.
fn check_firecracker(
    host: &ProbeHost<'_>,
    query: &HostQuery,
    cache: &mut Cache,
) -> (HostCheck, Option<Firecracker>) {
    let since = Instant::now();
    let name = CHECK_FIRECRACKER;
    let unusable = |detail: String, remedy: String| {
        let mut check = check(name, since, Verdict::Unusable, detail);
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
            let remedy = crate::firecracker::REMEDY.to_owned();
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
    if let Some(kept) = cache.verdict(name) {
        return (kept.into_check(name, since), Some(driver));
    }
    let Some(guest) = &query.probe else {
        let detail = format!("{what}; not proved, as there is no kernel to boot yet");
        let mut check = check(name, since, Verdict::Degraded, detail);
        check.remedy = Some("install a kernel, then ask again".to_owned());
        return (check, Some(driver));
    };
    let booted = boot::until_hello(
        &driver.clone().start_limit(KVM_LIMIT),
        &program,
        guest,
        host.runtime_dir,
        0,
        KVM_LIMIT,
    );
    let (kept, lasting) = match booted {
        Ok(hello) => (Kept::ready(format!("{what}; {hello}")), true),
        Err(error) => (
            Kept {
                verdict: Verdict::Unusable,
                detail: format!("{what}; a guest did not boot with it: {error}"),
                remedy: Some(device.remedy().to_owned()),
            },
            !(device.hardware && matches!(error, Error::Timeout { .. })),
        ),
    };
    if lasting {
        cache.keep_verdict(name, &kept);
    }
    (kept.into_check(name, since), Some(driver))
}

/// What carries `user` networks: a passt that answered, or QEMU's own.
fn check_network(host: &ProbeHost<'_>, cache: &mut Cache) -> (HostCheck, Option<Passt>) {
    let since = Instant::now();
    let without = |detail: String, remedy: Option<&str>| {
        let detail = format!(
            "{detail}; the network mode user is QEMU's own, in which the host's loopback is reached at the gateway"
        );
        let mut check = check(CHECK_NETWORK, since, Verdict::Degraded, detail);
        check.remedy = remedy.map(str::to_owned);
        check
    };
    let passt = match Passt::find(host.search_path) {
        Ok(passt) => passt,
        Err(error @ Error::ProgramMissing { .. }) => {
            // The remedy is part of its words already.
            return (without(error.to_string(), None), None);
        }
        Err(error) => return (without(error.to_string(), Some(network::REMEDY)), None),
    };
    cache.keep_passt(passt.path());
    let proved = match cache.verdict(CHECK_NETWORK) {
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
        check(CHECK_NETWORK, since, Verdict::Ready, detail),
        Some(passt),
    )
}

fn check_tcg(
    host: &ProbeHost<'_>,
    query: &HostQuery,
    binary: &QemuBinary,
    tsc_khz: Option<u64>,
    cache: &mut Cache,
) -> HostCheck {
    let since = Instant::now();
    if let Some(kept) = cache.verdict(CHECK_TCG) {
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
            check.remedy = Some("install a kernel, then ask again".to_owned());
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
    let first = boot_probe(host, binary, accelerator, guest, 0, TCG_LIMIT);
    let kept = match first {
        Ok(hello) => Kept::ready(hello),
        Err(first) => match boot_probe(host, binary, accelerator, guest, 1, TCG_LIMIT) {
            Ok(hello) => Kept {
                verdict: Verdict::Degraded,
                detail: format!("{hello}, but only on the fallback machine type ({first})"),
                remedy: None,
            },
            Err(second) => Kept {
                verdict: Verdict::Unusable,
                detail: format!("a guest did not boot: {first}; on the fallback machine type: {second}"),
                remedy: Some(
                    "check that the kernel is for this architecture and that the host is not out of memory"
                        .to_owned(),
                ),
            },
        },
    };
    // Nothing in emulation depends on the host's boot: what failed may work next time.
    if kept.verdict != Verdict::Unusable {
        cache.keep_verdict(CHECK_TCG, &kept);
    }
    kept.into_check(CHECK_TCG, since)
}

/// Boots the probe guest until it says hello; tells how that went.
fn boot_probe(
    host: &ProbeHost<'_>,
    binary: &QemuBinary,
    accelerator: Accelerator,
    guest: &ProbeGuest,
    attempt: u32,
    limit: Duration,
) -> Result<String, Error> {
    let driver = Qemu::new(binary.clone(), accelerator).start_limit(limit);
    let hello = boot::until_hello(
        &driver,
        binary.path(),
        guest,
        host.runtime_dir,
        attempt,
        limit,
    )?;
    Ok(hello.to_string())
}

/// What holds a monitor back here: one without a machine is started as any other, and looked at.
fn check_confinement(host: &ProbeHost<'_>, binary: Option<&QemuBinary>) -> HostCheck {
    let since = Instant::now();
    let name = CHECK_CONFINEMENT;
    let Some(binary) = binary else {
        let detail = "not looked at, as there is no monitor to start";
        return check(name, since, Verdict::Degraded, detail);
    };
    let found = match confinement_of_idle(binary, host.runtime_dir) {
        Ok(found) => found,
        Err(error) => return check(name, since, Verdict::Unusable, error.to_string()),
    };
    let gaps: Vec<String> = found
        .missing
        .iter()
        .map(|gap| format!(". Not by {}: {}", gap.layer, gap.reason))
        .collect();
    let detail = format!("a monitor is held back by: {found}{}", gaps.concat());
    if found.shortfall().is_none() {
        return check(name, since, Verdict::Ready, detail);
    }
    let mut check = check(name, since, Verdict::Degraded, detail);
    check.remedy = Some(
        "Landlock: Linux 5.13 or newer with landlock in the lsm= list; namespaces: Linux 5.12 or newer, \
         and unprivileged user namespaces allowed"
            .to_owned(),
    );
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(qemu: Verdict, kvm: Verdict, tcg: Verdict) -> Vec<HostCheck> {
        [(CHECK_QEMU, qemu), (CHECK_KVM, kvm), (CHECK_TCG, tcg)]
            .map(|(name, verdict)| {
                let mut check = check(name, Instant::now(), verdict, format!("{name} detail"));
                check.remedy = Some(format!("{name} remedy"));
                check
            })
            .into()
    }

    #[test]
    fn kvm_is_taken_only_where_it_was_proved() {
        use Verdict::{Degraded, Ready, Unusable};
        let auto = |kvm, tcg| {
            select(
                BackendChoice::Auto,
                NetworkMode::User,
                &checks(Ready, kvm, tcg),
            )
        };
        assert_eq!(auto(Ready, Ready).unwrap().0, Backend::QemuKvm);
        let (backend, reason) = auto(Degraded, Degraded).unwrap();
        assert_eq!(backend, Backend::QemuTcg);
        assert!(
            reason.contains("slower") && reason.contains("kvm detail"),
            "{reason}"
        );
        assert_eq!(auto(Ready, Unusable).unwrap().0, Backend::QemuKvm);
        let error = auto(Unusable, Unusable).unwrap_err().to_string();
        assert!(
            error.contains("kvm remedy") && error.contains("emulation remedy"),
            "{error}"
        );
    }

    #[test]
    fn firecracker_is_taken_where_it_was_proved_and_does_what_is_asked() {
        use Verdict::{Ready, Unusable};
        let with = |verdict| {
            let mut all = checks(Ready, Ready, Ready);
            all.push(check(CHECK_FIRECRACKER, Instant::now(), verdict, "detail"));
            all
        };
        let auto = |network, verdict| {
            select(BackendChoice::Auto, network, &with(verdict))
                .unwrap()
                .0
        };
        assert_eq!(auto(NetworkMode::Isolated, Ready), Backend::Firecracker);
        assert_eq!(auto(NetworkMode::User, Ready), Backend::QemuKvm);
        assert_eq!(auto(NetworkMode::Isolated, Unusable), Backend::QemuKvm);
        let mut all = with(Ready);
        all.push(check(CHECK_NETWORK, Instant::now(), Ready, "detail"));
        let chosen = select(BackendChoice::Auto, NetworkMode::User, &all);
        assert_eq!(chosen.unwrap().0, Backend::Firecracker);
        let named = BackendChoice::Only(Backend::Firecracker);
        let error = select(named, NetworkMode::Isolated, &with(Unusable)).unwrap_err();
        assert!(error.to_string().contains("firecracker: detail"), "{error}");
    }

    #[test]
    fn a_named_backend_is_that_one_or_none() {
        use Verdict::{Ready, Unusable};
        let only = |backend, kvm, tcg| {
            select(
                BackendChoice::Only(backend),
                NetworkMode::User,
                &checks(Ready, kvm, tcg),
            )
            .map(|(got, _)| got)
        };
        assert_eq!(
            only(Backend::QemuTcg, Ready, Ready).unwrap(),
            Backend::QemuTcg
        );
        let error = only(Backend::QemuKvm, Unusable, Ready)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("qemu-kvm") && error.contains("kvm remedy"),
            "{error}"
        );
        let none = select(
            BackendChoice::Only(Backend::QemuTcg),
            NetworkMode::User,
            &checks(Unusable, Ready, Ready),
        );
        assert!(none.unwrap_err().to_string().contains("qemu remedy"));
    }
}
