//! A driver under test, and guests that fit it.

use std::{path::PathBuf, time::Duration};

use microagent_hypervisor::{
    Hypervisor, Machine,
    firecracker::{Firecracker, FirecrackerBinary, JailerBinary},
    network::Passt,
    probe::{Depth, ProbeHost, probe},
    qemu::{Accelerator, Qemu, QemuBinary},
};
use microagent_protocol::{
    Backend, BackendChoice, Mebibytes, NetworkMode, VcpuCount,
    supervisor::{HostQuery, ProbeGuest},
};

use crate::common::Guest;

/// A driver and what its guests are like.
pub(crate) struct Subject {
    pub(crate) driver: Box<dyn Hypervisor>,
    /// A kernel with everything built in; else the distribution's, with modules.
    kernel: Option<PathBuf>,
    pub(crate) vcpus: u32,
    pub(crate) memory: u32,
    /// How long a guest may take to boot or to do a little thing.
    pub(crate) patience: Duration,
}

impl Subject {
    /// The driver of `backend`, or why it cannot be run here.
    pub(crate) fn find(backend: Backend) -> Result<Self, String> {
        let built_in = std::env::var_os("MICROAGENT_CONFORMANCE_KERNEL").map(PathBuf::from);
        match (Self::proved(backend), built_in) {
            (Err(_), Some(kernel))
                if matches!(backend, Backend::QemuKvm | Backend::Firecracker) =>
            {
                Self::with_kernel(backend, kernel)
            }
            (proved, _) => proved,
        }
    }

    /// As the program itself chooses: what booted a small guest can be run.
    fn proved(backend: Backend) -> Result<Self, String> {
        let guest = Guest::new("probe");
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        let [firecracker, jailer] = named();
        let host = ProbeHost {
            search_path: &search_path,
            firecracker: firecracker.as_deref(),
            jailer: jailer.as_deref(),
            libexec: None,
            runtime_dir: &guest.spec.runtime_dir,
            depth: Depth::Choose,
        };
        let choice = BackendChoice::Only(backend);
        let query = HostQuery {
            backend: choice,
            probe: Some(ProbeGuest {
                kernel: guest.spec.kernel.clone(),
                initramfs: guest.spec.initramfs.clone(),
            }),
            cache_dir: None,
            fresh: true,
            probe_limit_ms: None,
        };
        let found = probe(&host, &query).driver(choice, NetworkMode::Isolated, 2);
        let (driver, _) = found.map_err(|error| error.to_string())?;
        Ok(Self {
            driver,
            kernel: None,
            vcpus: 2,
            memory: 256,
            patience: Duration::from_secs(60),
        })
    }

    /// With a kernel that somebody made for this host, on as plain a machine as there is: what a
    /// KVM that boots no ordinary kernel does not have is left out.
    fn with_kernel(backend: Backend, kernel: PathBuf) -> Result<Self, String> {
        std::fs::File::open(&kernel).map_err(|error| format!("{}: {error}", kernel.display()))?;
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let driver: Box<dyn Hypervisor> = if backend == Backend::Firecracker {
            Box::new(firecracker()?)
        } else {
            let binary = QemuBinary::find(&path).map_err(|error| error.to_string())?;
            Box::new(Qemu::new(binary, Accelerator::Kvm).plain())
        };
        Ok(Self {
            driver,
            kernel: Some(kernel),
            vcpus: 1,
            memory: 96,
            // Such a kernel runs in an emulator of instructions.
            patience: Duration::from_secs(180),
        })
    }

    /// The driver of Firecracker in its own type, which has more.
    pub(crate) fn firecracker(&self) -> Firecracker {
        assert_eq!(self.driver.backend(), Backend::Firecracker);
        firecracker().unwrap_or_else(|error| panic!("{error}"))
    }

    /// A guest that does what `mode` says.
    pub(crate) fn guest(&self, mode: &str) -> Guest {
        let mut guest = match &self.kernel {
            Some(kernel) => Guest::built_in(mode, kernel),
            None => Guest::new(mode),
        };
        guest.spec.vcpus = VcpuCount::try_from(self.vcpus).unwrap();
        guest.spec.memory = Mebibytes(self.memory);
        guest.patience = self.patience;
        guest
    }

    pub(crate) fn launch(&self, guest: &Guest) -> Box<dyn Machine> {
        self.driver
            .launch(&guest.spec)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// As it is found here.
fn firecracker() -> Result<Firecracker, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let [given, jailer] = named();
    let binary = FirecrackerBinary::find(given.as_deref(), &path, None)
        .map_err(|error| error.to_string())?;
    let jailer =
        JailerBinary::find(jailer.as_deref(), &binary, &path).map_err(|error| error.to_string())?;
    Ok(Firecracker::new(binary)
        .jailer(jailer)
        .passt(Passt::find(&path).ok()))
}

/// Firecracker and its jailer, where somebody said where they are.
fn named() -> [Option<PathBuf>; 2] {
    ["MICROAGENT_FIRECRACKER", "MICROAGENT_JAILER"].map(|name| {
        let path = std::env::var_os(name).filter(|path| !path.is_empty())?;
        Some(PathBuf::from(path))
    })
}
