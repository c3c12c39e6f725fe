//! What a Mac can do, judged by what was seen of it; and which backend a machine gets there.

use std::time::Instant;

use microagent_protocol::{
    Backend, BackendChoice, NetworkMode,
    supervisor::{HostCheck, Verdict},
};

use super::{CHECK_APPLE, Refusal};
use crate::Error;

/// Without it in the executable's signature the framework makes no machine.
const ENTITLEMENT: &str = "com.apple.security.virtualization";

/// The first macOS with all that the driver asks for: disk identifiers came with 12.3, and nobody supports 12
/// any more.
const LEAST_MACOS: i64 = 13;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// As [`std::env::consts::ARCH`].
    pub(super) architecture: &'static str,
    /// macOS's major and minor version.
    pub(super) macos: (i64, i64),
    /// What `VZVirtualMachine.isSupported` says.
    pub(super) supported: bool,
    /// Why a small configuration is invalid, in the framework's words.
    pub(super) invalid: Option<String>,
}

/// What stands in the way, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: String,
    pub(super) remedy: &'static str,
}

/// What helps against what the framework said, where that is known.
pub(super) fn remedy_for(words: &str) -> Option<&'static str> {
    // It has no error code of its own; the name of the entitlement is in every language.
    words.contains(ENTITLEMENT).then_some(
        "sign the executable with xtask/macos/microagent.entitlements, as `cargo xtask install` does on a Mac",
    )
}

impl Facts {
    /// What is there, in words.
    pub(super) fn describe(&self) -> String {
        let (major, minor) = self.macos;
        format!("macOS {major}.{minor} on {}", self.architecture)
    }

    /// The first thing in the way.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        let obstacle = |reason: String, remedy| Some(Obstacle { reason, remedy });
        if self.architecture != "aarch64" {
            let reason = format!(
                "the driver runs on Apple silicon, and this is {}",
                self.architecture
            );
            return obstacle(reason, "use a Mac with Apple silicon, or a Linux host");
        }
        if self.macos.0 < LEAST_MACOS {
            let (major, minor) = self.macos;
            let reason = format!("macOS {major}.{minor} is older than {LEAST_MACOS}");
            return obstacle(reason, "update macOS");
        }
        if let Some(words) = &self.invalid {
            let remedy = remedy_for(words).unwrap_or("see what the framework says");
            return obstacle(
                format!("the framework refuses a small machine: {words}"),
                remedy,
            );
        }
        if !self.supported {
            let reason = "the framework says that it is not supported here".to_owned();
            return obstacle(
                reason,
                "in a virtual machine, use a host and a macOS that nest them; else run this on the Mac itself",
            );
        }
        None
    }
}

/// The backend for a machine on a Mac.
///
/// # Errors
/// [`Error::Unsupported`] with the check's remedy; the driver's refusal of a network.
pub(super) fn select(
    choice: BackendChoice,
    network: NetworkMode,
    check: &HostCheck,
) -> Result<(Backend, String), Error> {
    let other = match choice {
        BackendChoice::Auto | BackendChoice::Only(Backend::AppleVf) => None,
        other => Some(other),
    };
    if let Some(other) = other {
        return Err(Error::Unsupported(format!(
            "{other} does not work here: its driver is for Linux hosts, and this is macOS; leave --backend at auto, or name apple-vf"
        )));
    }
    if check.verdict == Verdict::Unusable {
        let remedy = check.remedy.iter().map(|remedy| format!("; {remedy}"));
        return Err(Error::Unsupported(format!(
            "apple-vf does not work here: {}{}",
            check.detail,
            remedy.collect::<String>()
        )));
    }
    if network == NetworkMode::User {
        return Err(Refusal::UserNetwork.into());
    }
    let reason = match choice {
        BackendChoice::Auto => "macOS has this one alone",
        _ => "it was asked for",
    };
    Ok((Backend::AppleVf, reason.to_owned()))
}

/// The check of the framework, as far as it goes without a guest.
pub(super) fn check(facts: &Facts, since: Instant) -> HostCheck {
    let what = facts.describe();
    let (verdict, detail, remedy) = match facts.obstacle() {
        Some(Obstacle { reason, remedy }) => {
            let detail = format!("{what}: {reason}");
            (Verdict::Unusable, detail, Some(remedy.to_owned()))
        }
        None => {
            let detail =
                format!("{what}; the framework takes a small machine, and no guest was booted");
            let remedy = "install a kernel with `microagent kernel install`, then ask again";
            (Verdict::Degraded, detail, Some(remedy.to_owned()))
        }
    };
    HostCheck {
        name: CHECK_APPLE.to_owned(),
        verdict,
        required: true,
        detail,
        remedy,
        ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            architecture: "aarch64",
            macos: (14, 5),
            supported: true,
            invalid: None,
        }
    }

    fn judged(facts: &Facts) -> HostCheck {
        check(facts, Instant::now())
    }

    #[test]
    fn a_mac_that_may_run_machines_is_usable_and_not_called_proved() {
        let check = judged(&good());
        assert_eq!(check.verdict, Verdict::Degraded);
        assert!(check.detail.contains("macOS 14.5") && check.detail.contains("no guest"));
        let (backend, _) = select(BackendChoice::Auto, NetworkMode::Isolated, &check).unwrap();
        assert_eq!(backend, Backend::AppleVf);
        let only = BackendChoice::Only(Backend::AppleVf);
        assert!(select(only, NetworkMode::Isolated, &check).is_ok());
    }

    #[test]
    fn each_obstacle_comes_with_its_remedy() {
        let words = "Invalid virtual machine configuration. The process doesn\u{2019}t have the \
                     \u{201c}com.apple.security.virtualization\u{201d} entitlement.";
        for (facts, reason, remedy) in [
            (
                Facts {
                    architecture: "x86_64",
                    ..good()
                },
                "this is x86_64",
                "Apple silicon",
            ),
            (
                Facts {
                    macos: (12, 7),
                    ..good()
                },
                "macOS 12.7 is older",
                "update",
            ),
            (
                Facts {
                    supported: false,
                    ..good()
                },
                "not supported",
                "nest",
            ),
            (
                // Without the entitlement nothing is supported; that it is missing says more.
                Facts {
                    supported: false,
                    invalid: Some(words.to_owned()),
                    ..good()
                },
                "entitlement",
                "cargo xtask install",
            ),
            (
                Facts {
                    invalid: Some("No boot loader.".to_owned()),
                    ..good()
                },
                "No boot loader.",
                "framework says",
            ),
        ] {
            let check = judged(&facts);
            assert_eq!(check.verdict, Verdict::Unusable, "{facts:?}");
            assert!(check.detail.contains(reason), "{}", check.detail);
            assert!(
                check
                    .remedy
                    .as_ref()
                    .is_some_and(|text| text.contains(remedy))
            );
            let error = select(BackendChoice::Auto, NetworkMode::Isolated, &check).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(reason) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn a_linux_backend_and_a_network_are_refused_with_what_to_do() {
        let check = judged(&good());
        for choice in [
            BackendChoice::Qemu,
            BackendChoice::Only(Backend::QemuKvm),
            BackendChoice::Only(Backend::QemuTcg),
            BackendChoice::Only(Backend::Firecracker),
        ] {
            let error = select(choice, NetworkMode::Isolated, &check).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(&choice.to_string()) && error.contains("apple-vf"),
                "{error}"
            );
        }
        let error = select(BackendChoice::Auto, NetworkMode::User, &check).unwrap_err();
        assert!(error.to_string().contains("isolated"), "{error}");
    }
}
