//! QEMU: the `microvm` machine with KVM or software emulation, and a trimmed
//! `q35` for a second attempt at a boot.
//!
//! Every descriptor QEMU needs is made here and inherited by number: its
//! control channel (QMP), its console and its disks have no name anybody else
//! could open.

mod arguments;
mod binary;
mod disks;
mod kernel_line;
mod machine;
mod qmp;

pub use binary::QemuBinary;
pub(crate) use binary::REMEDY;
pub use machine::QemuMachine;
pub(crate) use machine::confinement_of_idle;
pub use qmp::RunState;

use std::time::Duration;

use microagent_protocol::{Backend, NetworkMode, NetworkProvider};

use crate::{
    Capabilities, Error, Hypervisor, Machine, MachineSpec, NetworkPlan,
    network::{self, Passt},
};

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator.
    Tcg {
        /// The rate of the host's time-stamp counter in kHz, from
        /// [`measure_tsc_khz`](crate::measure_tsc_khz); without it a guest on a
        /// busy host may hang while it measures.
        tsc_khz: Option<u64>,
    },
}

/// A machine type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineType {
    /// `microvm` with virtio-mmio devices.
    Microvm,
    /// `q35` with virtio-pci devices and as little else as it allows.
    Q35,
    /// `virt` with virtio-mmio devices (aarch64).
    Virt,
    /// As plain as a machine gets: `microvm` without ACPI, its devices named on the kernel's command
    /// line, a keyboard controller to reset it by, and with KVM only what a paravirtual one gives of
    /// the processor. For kernels that need no more.
    Plain,
}

impl MachineType {
    /// The type for an attempt at a boot.
    #[must_use]
    pub const fn for_attempt(attempt: u32) -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Virt
        } else if attempt == 0 {
            Self::Microvm
        } else {
            Self::Q35
        }
    }
}

/// The QEMU driver.
#[derive(Clone, Debug)]
pub struct Qemu {
    binary: QemuBinary,
    accelerator: Accelerator,
    passt: Option<Passt>,
    by_tap: bool,
    plain: bool,
    start_limit: Duration,
}

impl Qemu {
    /// A driver for this QEMU and accelerator, both of which the caller proved.
    #[must_use]
    pub const fn new(binary: QemuBinary, accelerator: Accelerator) -> Self {
        Self {
            binary,
            accelerator,
            passt: None,
            by_tap: false,
            plain: false,
            start_limit: Duration::from_secs(20),
        }
    }

    /// The same with `user` networks by passt. Without it, and with a QEMU that cannot speak to it,
    /// they are QEMU's own, from which the host's loopback can be reached.
    #[must_use]
    pub fn passt(mut self, passt: Option<Passt>) -> Self {
        self.passt = passt.filter(|_| self.binary.version() >= binary::STREAMS);
        self
    }

    /// The same with the network card on a tap in QEMU's namespaces, as Firecracker's is, instead of
    /// a wire it inherits. It is slower to make; the tests use it to show the plumbing with a guest.
    #[must_use]
    pub const fn by_tap(mut self, by_tap: bool) -> Self {
        self.by_tap = by_tap;
        self
    }

    /// The same with [`MachineType::Plain`] for each attempt: for a host whose KVM boots no ordinary
    /// kernel, and a kernel that was made for it.
    #[must_use]
    pub const fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// The same with another limit for QEMU's own start, until it answers on
    /// its control channel (20 s).
    #[must_use]
    pub const fn start_limit(mut self, limit: Duration) -> Self {
        self.start_limit = limit;
        self
    }

    /// The QEMU in use.
    #[must_use]
    pub const fn binary(&self) -> &QemuBinary {
        &self.binary
    }

    /// Launches a machine, with what only QEMU's has.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`].
    pub fn launch_qemu(&self, spec: &MachineSpec) -> Result<QemuMachine, Error> {
        let machine_type = match self.plain {
            true => MachineType::Plain,
            false => MachineType::for_attempt(spec.attempt),
        };
        QemuMachine::launch(
            &self.binary,
            self.accelerator,
            machine_type,
            self.passt.as_ref(),
            self.by_tap,
            self.start_limit,
            spec,
        )
    }
}

impl Hypervisor for Qemu {
    fn backend(&self) -> Backend {
        match self.accelerator {
            Accelerator::Kvm => Backend::QemuKvm,
            Accelerator::Tcg { .. } => Backend::QemuTcg,
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.backend().capabilities()
    }

    fn network_plan(&self, mode: NetworkMode) -> Option<NetworkPlan> {
        match (mode, &self.passt) {
            (NetworkMode::User, Some(passt)) => {
                Some(network::plan(NetworkProvider::Passt, passt.ipv6()))
            }
            (NetworkMode::User, None) => Some(network::plan(NetworkProvider::Slirp, false)),
            (NetworkMode::Isolated, _) => None,
        }
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, Error> {
        Ok(Box::new(self.launch_qemu(spec)?))
    }
}
