//! Which backend a machine gets, by what was found.

use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{HostCheck, Verdict},
};

use super::{CHECK_FIRECRACKER, CHECK_KVM, CHECK_NETWORK, CHECK_QEMU, CHECK_TCG};
use crate::{Error, firecracker};

/// Chooses a backend by what was found, for a machine with this network and so many disks.
///
/// # Errors
/// [`Error::Unsupported`] with the failing checks' remedies.
pub fn select(
    choice: BackendChoice,
    network: NetworkMode,
    disks: usize,
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
        // Without passt it has no network: a machine that needs one is QEMU's, and so is one with
        // more disks than it has room for.
        BackendChoice::Auto
            if firecracker
                && (network == NetworkMode::Isolated || passt)
                && firecracker::fits(disks, network) =>
        {
            Ok((
                Backend::Firecracker,
                "KVM and Firecracker were proved to work".to_owned(),
            ))
        }
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
        BackendChoice::Only(Backend::AppleVf) => Err(Error::Unsupported(
            "apple-vf does not work here: it is macOS's own framework, and this host runs Linux; \
             leave --backend at auto, or name firecracker or qemu"
                .to_owned(),
        )),
        BackendChoice::Only(Backend::QemuKvm) => Err(refuse("qemu-kvm", &[CHECK_QEMU, CHECK_KVM])),
        BackendChoice::Only(Backend::QemuTcg) => Err(refuse("qemu-tcg", &[CHECK_QEMU, CHECK_TCG])),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{super::check, *};

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
                2,
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
            select(BackendChoice::Auto, network, 2, &with(verdict))
                .unwrap()
                .0
        };
        assert_eq!(auto(NetworkMode::Isolated, Ready), Backend::Firecracker);
        assert_eq!(auto(NetworkMode::User, Ready), Backend::QemuKvm);
        assert_eq!(auto(NetworkMode::Isolated, Unusable), Backend::QemuKvm);
        let mut all = with(Ready);
        all.push(check(CHECK_NETWORK, Instant::now(), Ready, "detail"));
        // It has room for fewer disks than QEMU: here for twelve besides the first two.
        let most = if cfg!(target_arch = "aarch64") {
            89
        } else {
            14
        };
        for (disks, backend) in [
            (2, Backend::Firecracker),
            (most, Backend::Firecracker),
            (most + 1, Backend::QemuKvm),
        ] {
            let chosen = select(BackendChoice::Auto, NetworkMode::User, disks, &all);
            assert_eq!(chosen.unwrap().0, backend, "{disks}");
        }
        let named = BackendChoice::Only(Backend::Firecracker);
        let error = select(named, NetworkMode::Isolated, 2, &with(Unusable)).unwrap_err();
        assert!(error.to_string().contains("firecracker: detail"), "{error}");
    }

    #[test]
    fn another_systems_backend_is_refused_with_what_to_name_instead() {
        use Verdict::Ready;
        let apple = select(
            BackendChoice::Only(Backend::AppleVf),
            NetworkMode::Isolated,
            2,
            &checks(Ready, Ready, Ready),
        );
        let error = apple.unwrap_err().to_string();
        assert!(
            error.contains("apple-vf") && error.contains("Linux") && error.contains("qemu"),
            "{error}"
        );
    }

    #[test]
    fn a_named_backend_is_that_one_or_none() {
        use Verdict::{Ready, Unusable};
        let only = |backend, kvm, tcg| {
            select(
                BackendChoice::Only(backend),
                NetworkMode::User,
                2,
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
            2,
            &checks(Unusable, Ready, Ready),
        );
        assert!(none.unwrap_err().to_string().contains("qemu remedy"));
    }
}
