//! What this Mac can do, asked of the framework and proved by a guest.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use microagent_protocol::{
    BackendChoice, NetworkMode,
    supervisor::{HostQuery, HostReport, Verdict},
};
use objc2_foundation::NSProcessInfo;
use objc2_virtualization::VZVirtualMachine;

use super::{
    AppleVz, configuration,
    verdict::{self, Facts, remedy_for, select},
};
use crate::{Error, Hypervisor, boot, report::report};

/// How long the probe guest may take to say hello.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Clone, Debug)]
pub struct Probed {
    /// For people and programs.
    pub report: HostReport,
}

impl Probed {
    /// The driver for a choice and a network, and why it was taken.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the choice does not work here; [`Error::Refused`] for the network.
    pub fn driver(
        &self,
        choice: BackendChoice,
        network: NetworkMode,
    ) -> Result<(Box<dyn Hypervisor>, String), Error> {
        let check = self.report.checks.first();
        let check = check.ok_or_else(|| Error::Unsupported("nothing was looked at".to_owned()))?;
        let (_, reason) = select(choice, network, check)?;
        Ok((Box::new(AppleVz::default()), reason))
    }
}

/// Looks at this host; boots the probe guest if there is one and `prove` says where its sockets may be.
#[must_use]
pub fn probe(query: &HostQuery, prove: Option<&Path>) -> Probed {
    let since = Instant::now();
    let facts = facts(query);
    let mut check = verdict::check(&facts, since);
    if let (Some(guest), Some(runtime_dir)) = (&query.probe, prove)
        && check.verdict != Verdict::Unusable
    {
        let limit = PROBE_LIMIT.max(Duration::from_millis(query.probe_limit_ms.unwrap_or(0)));
        let driver = AppleVz::default();
        let program = Path::new("Virtualization.framework");
        let what = facts.describe();
        match boot::until_hello(&driver, program, guest, runtime_dir, 0, limit) {
            Ok(hello) => {
                check.verdict = Verdict::Ready;
                check.detail = format!("{what}; {hello}");
                check.remedy = None;
            }
            Err(error) => {
                check.verdict = Verdict::Unusable;
                check.detail = format!("{what}; a guest did not boot: {error}");
                let slow =
                    "if this Mac is only slow, MICROAGENT_BOOT_TIMEOUT=2m gives guests that long";
                check.remedy = Some(slow.to_owned());
            }
        }
    }
    Probed {
        report: report(
            vec![check.clone()],
            query.backend,
            NetworkMode::Isolated,
            |choice, network, _| select(choice, network, &check),
        ),
    }
}

fn facts(query: &HostQuery) -> Facts {
    let version = NSProcessInfo::processInfo().operatingSystemVersion();
    let kernel = query.probe.as_ref().and_then(|guest| guest.kernel.to_str());
    let small = configuration::small(kernel.unwrap_or("/dev/null"));
    let invalid = configuration::validate(&small).err();
    Facts {
        architecture: std::env::consts::ARCH,
        macos: (version.majorVersion as i64, version.minorVersion as i64),
        // SAFETY: a class property without arguments.
        supported: unsafe { VZVirtualMachine::isSupported() },
        // Without a kernel it may well be that which it refuses.
        invalid: invalid.filter(|words| kernel.is_some() || remedy_for(words).is_some()),
    }
}
