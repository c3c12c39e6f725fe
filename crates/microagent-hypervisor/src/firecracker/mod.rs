//! Firecracker: the driver for Linux hosts with KVM. `binary` finds it and asks its version, `api`
//! speaks its published API over `http`, `jailer` starts it where we are root, `machine` is one process and the machine in it.

mod api;
mod binary;
mod http;
mod jailer;
mod machine;

use std::{path::PathBuf, time::Duration};

use microagent_protocol::{Backend, NetworkMode, NetworkProvider};

use self::machine::About;
pub use self::{
    api::{CpuTemplate, HugePages, RateLimiter, TokenBucket},
    binary::FirecrackerBinary,
    jailer::JailerBinary,
    machine::{FirecrackerMachine, Snapshot},
};
pub(crate) use self::{binary::REMEDY, machine::fits};
use crate::{
    Capabilities, Error, Hypervisor, Machine, MachineSpec, NetworkPlan,
    network::{self, Passt},
};

/// How long Firecracker may take until its API answers.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What Firecracker can do beyond a [`MachineSpec`]. The default is what a workspace gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Show the guest two threads for each core; the number of vCPUs must be even then, or 1.
    pub smt: bool,
    /// Back the guest's memory with large pages.
    pub huge_pages: Option<HugePages>,
    /// Show the guest the processor features of a template instead of the host's.
    pub cpu_template: Option<CpuTemplate>,
    /// What each writable disk may do in a time.
    pub disk_limit: Option<RateLimiter>,
    /// What its network card may do in a time, in each direction.
    pub network_limit: Option<RateLimiter>,
    /// An existing file or pipe of this machine alone, to which Firecracker adds its metrics, a line of
    /// JSON each minute. Nothing bounds it but its reader.
    pub metrics: Option<PathBuf>,
    /// A balloon, at first empty: memory can be taken back from the guest.
    pub balloon: bool,
    /// Where snapshots may be written to and read from.
    pub snapshots: Option<PathBuf>,
}

/// The driver.
#[derive(Clone, Debug)]
pub struct Firecracker {
    binary: FirecrackerBinary,
    jailer: Option<JailerBinary>,
    tuning: Tuning,
    passt: Option<Passt>,
    start_limit: Duration,
}

impl Firecracker {
    /// A driver that runs this program.
    #[must_use]
    pub fn new(binary: FirecrackerBinary) -> Self {
        Self {
            binary,
            jailer: None,
            tuning: Tuning::default(),
            passt: None,
            start_limit: START_LIMIT,
        }
    }

    /// The same with other settings.
    #[must_use]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// The same started by its jailer where that works, and in our own jail where it does not, or
    /// where every layer of confinement is required.
    #[must_use]
    pub fn jailer(mut self, jailer: Option<JailerBinary>) -> Self {
        self.jailer = jailer;
        self
    }

    /// The same with `user` networks, by passt and a tap in the namespaces of Firecracker.
    #[must_use]
    pub fn passt(mut self, passt: Option<Passt>) -> Self {
        self.passt = passt;
        self
    }

    /// The same with another limit until its API answers.
    #[must_use]
    pub const fn start_limit(mut self, limit: Duration) -> Self {
        self.start_limit = limit;
        self
    }

    /// As [`Hypervisor::launch`], with the machine's own type.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`].
    pub fn launch_firecracker(&self, spec: &MachineSpec) -> Result<FirecrackerMachine, Error> {
        FirecrackerMachine::launch(&self.about(), spec)
    }

    /// Launches the machine of a snapshot, at the instant it was taken. The files of its disks, its
    /// vsock's socket and its console are found where they were, so `spec` must name the same; time
    /// and entropy in the guest are those of the snapshot until somebody sets them.
    ///
    /// # Errors
    /// As [`Hypervisor::launch`]; if the snapshot is of another machine or version.
    pub fn restore(
        &self,
        spec: &MachineSpec,
        snapshot: &Snapshot,
    ) -> Result<FirecrackerMachine, Error> {
        FirecrackerMachine::restore(&self.about(), spec, snapshot)
    }

    fn about(&self) -> About<'_> {
        About {
            binary: &self.binary,
            jailer: self.jailer.as_ref(),
            tuning: &self.tuning,
            passt: self.passt.as_ref(),
            limit: self.start_limit,
        }
    }
}

impl Hypervisor for Firecracker {
    fn backend(&self) -> Backend {
        Backend::Firecracker
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            user_network: self.passt.is_some(),
            ..self.backend().capabilities()
        }
    }

    fn network_plan(&self, mode: NetworkMode) -> Option<NetworkPlan> {
        let passt = self.passt.as_ref().filter(|_| mode == NetworkMode::User)?;
        Some(network::plan(NetworkProvider::Passt, passt.ipv6()))
    }

    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, Error> {
        Ok(Box::new(self.launch_firecracker(spec)?))
    }
}
