//! What this host can run, found out by doing what a boot does.

use std::{path::Path, time::Instant};

use microagent_kernel::{KernelStore, Provenance};
use microagent_protocol::{
    Backend, BackendChoice,
    supervisor::{HostCheck, HostQuery, HostReport, ProbeGuest, Verdict},
};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    directories,
    error::{Error, Result},
    files,
    run::{millis, prepare},
    supervisor::program,
};

/// Less free space than this makes a state directory unusable, in MiB.
const SPACE_NEEDED_MIB: u64 = 256;

/// Less free space than this is worth a word, in MiB.
const SPACE_WANTED_MIB: u64 = 2048;

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct DoctorOptions {
    backend: BackendChoice,
    fresh: bool,
}

impl DoctorOptions {
    /// Looks at everything, and trusts what was proved since this host booted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for one backend.
    pub fn backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Proves everything again.
    pub fn fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// Whether something can run.
    pub ok: bool,
    /// Everything together.
    pub verdict: Verdict,
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// The backend that would be used, if any works.
    pub chosen: Option<Backend>,
    /// Why that one.
    pub reason: String,
    /// Everything that was looked at.
    pub checks: Vec<HostCheck>,
}

/// Looks at the state directory, the kernel, and (through the supervisor) at the host.
pub(crate) fn run(config: &Config, options: &DoctorOptions) -> Result<DoctorReport> {
    let mut checks = vec![check("state_dir", true, || state_dir(config))];
    let mut probe = None;
    checks.push(check("kernel", false, || kernel(config, &mut probe)));
    let query = HostQuery {
        backend: options.backend,
        probe,
        cache_dir: Some(config.host_cache_dir()),
        fresh: options.fresh,
        probe_limit_ms: config.timeouts.probe.map(millis),
    };
    let host = match program::host(config, query) {
        Ok(host) => host,
        // A report that says what is wrong is more use than an error in its place.
        Err(error) => return Ok(without_host(checks, &error)),
    };
    checks.extend(host.checks);
    let verdict = overall(&checks, host.chosen);
    Ok(DoctorReport {
        ok: verdict != Verdict::Unusable,
        verdict,
        os: host.os,
        architecture: host.architecture,
        chosen: host.chosen,
        reason: host.reason,
        checks,
    })
}

/// The host's part alone.
pub(crate) fn host(config: &Config, options: &DoctorOptions) -> Result<HostReport> {
    let mut probe = None;
    check("kernel", false, || kernel(config, &mut probe));
    let query = HostQuery {
        backend: options.backend,
        probe,
        cache_dir: Some(config.host_cache_dir()),
        fresh: options.fresh,
        probe_limit_ms: config.timeouts.probe.map(millis),
    };
    program::host(config, query)
}

fn without_host(mut checks: Vec<HostCheck>, error: &Error) -> DoctorReport {
    let report = error.report();
    checks.push(HostCheck {
        name: "supervisor".to_owned(),
        verdict: Verdict::Unusable,
        required: true,
        detail: report.message.clone(),
        remedy: report
            .remedy
            .or_else(|| Some("Install microagent again.".to_owned())),
        ms: 0,
    });
    DoctorReport {
        ok: false,
        verdict: Verdict::Unusable,
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        chosen: None,
        reason: report.message,
        checks,
    }
}

fn overall(checks: &[HostCheck], chosen: Option<Backend>) -> Verdict {
    let broken = |check: &HostCheck| check.required && check.verdict == Verdict::Unusable;
    if chosen.is_none() || checks.iter().any(broken) {
        Verdict::Unusable
    } else if checks.iter().any(|check| check.verdict != Verdict::Ready) {
        Verdict::Degraded
    } else {
        Verdict::Ready
    }
}

/// A verdict, what was seen, and the remedy.
type Finding = (Verdict, String, Option<String>);

fn check(name: &str, required: bool, look: impl FnOnce() -> Finding) -> HostCheck {
    let begun = Instant::now();
    let (verdict, detail, remedy) = look();
    HostCheck {
        name: name.to_owned(),
        verdict,
        required,
        detail,
        remedy,
        ms: millis(begun.elapsed()),
    }
}

fn state_dir(config: &Config) -> Finding {
    let path = &config.state_dir;
    let shown = path.display();
    let choose = Some("Choose another directory with --state-dir.".to_owned());
    if let Err(error) = files::private_dir(path).and_then(|()| try_write(path)) {
        return (Verdict::Unusable, error.to_string(), choose);
    }
    if let Err(error) = directories::make_root(&config.runtime_dir) {
        return (Verdict::Unusable, error.to_string(), choose);
    }
    directories::remove_root(&config.runtime_dir);
    let free = match microagent_host::fs::free_bytes(path) {
        Ok(free) => free / (1024 * 1024),
        Err(error) => {
            return (
                Verdict::Unusable,
                format!("cannot look at {shown}: {error}"),
                choose,
            );
        }
    };
    let detail = format!("{shown} is writable and has {free} MiB free");
    let verdict = match free {
        free if free < SPACE_NEEDED_MIB => Verdict::Unusable,
        free if free < SPACE_WANTED_MIB => Verdict::Degraded,
        _ => return (Verdict::Ready, detail, None),
    };
    (
        verdict,
        detail,
        Some("Free some space, or choose another directory with --state-dir.".to_owned()),
    )
}

fn try_write(directory: &Path) -> Result<()> {
    let path = directory.join(".doctor.json");
    files::write_json(&path, &true, files::Durability::Unsynced)?;
    std::fs::remove_file(&path).map_err(|source| Error::Io {
        doing: "remove",
        path: path.clone(),
        source,
    })
}

fn kernel(config: &Config, probe: &mut Option<ProbeGuest>) -> Finding {
    let install = Some("Install one with `microagent kernel install`.".to_owned());
    let found = KernelStore::open(&config.state_dir).and_then(|store| {
        let record = store.default_kernel()?;
        Ok((store, record))
    });
    let (store, record) = match found {
        Ok((store, Some(record))) => (store, record),
        Ok((_, None)) => {
            let detail = "none is installed; the first run installs the distribution's".to_owned();
            return (Verdict::Degraded, detail, install);
        }
        Err(error) => return (Verdict::Degraded, error.to_string(), install),
    };
    match prepare::ready(&store, &record) {
        Ok(ready) => {
            *probe = Some(ProbeGuest {
                kernel: ready.kernel,
                initramfs: ready.initramfs,
            });
            let mut detail = format!("{} ({})", record.id, record.release);
            if let Provenance::DistributionPackage { .. } | Provenance::Host { .. } =
                &record.provenance
            {
                detail.push_str("; `microagent kernel build --default` makes one that boots faster and takes less memory");
            }
            (Verdict::Ready, detail, None)
        }
        Err(error) => (Verdict::Degraded, error.to_string(), install),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(verdict: Verdict, required: bool) -> HostCheck {
        check("x", required, || (verdict, String::new(), None))
    }

    #[test]
    fn the_verdict_is_the_worst_that_matters() {
        let some = Some(Backend::QemuTcg);
        let (ready, degraded, unusable) = (Verdict::Ready, Verdict::Degraded, Verdict::Unusable);
        assert_eq!(overall(&[one(ready, true)], some), ready);
        assert_eq!(overall(&[one(ready, true)], None), unusable);
        assert_eq!(overall(&[one(degraded, true)], some), degraded);
        assert_eq!(overall(&[one(unusable, false)], some), degraded);
        assert_eq!(overall(&[one(unusable, true)], some), unusable);
    }

    #[test]
    fn a_host_without_a_supervisor_is_reported_not_thrown() {
        let base = tempfile::tempdir().unwrap();
        let program = crate::SupervisorProgram::At(base.path().join("none"));
        let config = Config::new(base.path().join("state"), base.path().join("run"), program);
        let report = run(&config, &DoctorOptions::new()).unwrap();
        assert!(!report.ok);
        let names: Vec<_> = report
            .checks
            .iter()
            .map(|check| check.name.as_str())
            .collect();
        assert_eq!(names, ["state_dir", "kernel", "supervisor"]);
        assert_eq!(report.checks[0].verdict, Verdict::Ready, "{report:?}");
        for check in &report.checks {
            assert!(
                check.verdict == Verdict::Ready || check.remedy.is_some(),
                "{check:?}"
            );
        }
    }
}
