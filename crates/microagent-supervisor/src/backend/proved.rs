//! The drivers of a Linux host: what was proved to work here is chosen.

use std::{ffi::OsString, fs::DirBuilder, os::unix::fs::DirBuilderExt, path::PathBuf};

use microagent_hypervisor::probe::{Depth, ProbeHost, probe};
use microagent_protocol::{
    LaunchSpec,
    supervisor::{ErrorKind, ErrorReport, HostQuery, HostReport},
};

use super::{Backends, Chosen, HostBackends, place::ProbePlace, query_to_start};
use crate::Error;

impl Backends for HostBackends {
    fn choose(&self, spec: &LaunchSpec) -> Result<Chosen, ErrorReport> {
        if let Some(cache) = &spec.host_cache {
            // Without it everything works, only slower.
            if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(cache) {
                tracing::warn!("cannot make {}: {error}", cache.display());
            }
        }
        let programs = Programs::of_this_process();
        let probed = probe(
            &ProbeHost {
                search_path: &programs.search_path,
                firecracker: programs.firecracker.as_deref(),
                jailer: programs.jailer.as_deref(),
                libexec: programs.libexec.as_deref(),
                runtime_dir: &spec.runtime_dir,
                depth: Depth::Choose,
            },
            &query_to_start(spec),
        );
        let (driver, reason) = probed
            .driver(spec.backend, spec.network, 2 + spec.disks.len())
            .map_err(|error| ErrorReport::new(ErrorKind::Unsupported, error.to_string()))?;
        Ok(Chosen {
            hypervisor: driver,
            reason,
        })
    }

    fn host(&self, query: &HostQuery) -> Result<HostReport, ErrorReport> {
        let place = ProbePlace::new()
            .map_err(|error| Error::file("make", std::env::temp_dir())(error).report())?;
        let programs = Programs::of_this_process();
        let probed = probe(
            &ProbeHost {
                search_path: &programs.search_path,
                firecracker: programs.firecracker.as_deref(),
                jailer: programs.jailer.as_deref(),
                libexec: programs.libexec.as_deref(),
                runtime_dir: place.path(),
                depth: Depth::Prove,
            },
            query,
        );
        Ok(probed.report)
    }
}

/// Where programs are looked for.
struct Programs {
    search_path: OsString,
    /// `MICROAGENT_FIRECRACKER`.
    firecracker: Option<PathBuf>,
    /// `MICROAGENT_JAILER`.
    jailer: Option<PathBuf>,
    /// `../libexec` of this executable.
    libexec: Option<PathBuf>,
}

impl Programs {
    fn of_this_process() -> Self {
        let beside = std::env::current_exe()
            .and_then(std::fs::canonicalize)
            .ok()
            .and_then(|path| Some(path.parent()?.parent()?.join("libexec")));
        let named = |variable: &str| {
            let path = std::env::var_os(variable).filter(|path| !path.is_empty())?;
            Some(PathBuf::from(path))
        };
        Self {
            search_path: std::env::var_os("PATH")
                .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            firecracker: named("MICROAGENT_FIRECRACKER"),
            jailer: named("MICROAGENT_JAILER"),
            libexec: beside,
        }
    }
}
