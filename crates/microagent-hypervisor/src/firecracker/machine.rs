//! One Firecracker process and the machine in it.

mod configure;
mod start;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_protocol::NetworkMode;

use self::{
    configure::KERNEL_LINE,
    start::{Files, remove},
};
use super::{
    FirecrackerBinary, JailerBinary, Tuning,
    api::{Api, BootSource, VmState},
};
use crate::{
    Error, Exit, MachineSpec,
    boot_file::BootFile,
    driven::Driven,
    flat::with_flat_disks,
    network::{Network, Passt},
    process::Vmm,
};

/// The most vCPUs that Firecracker gives a machine.
const MAX_VCPUS: u8 = 32;
/// The most virtio devices it gives a machine: each has an interrupt line of its own. There are 19 on x86_64
/// and 96 on arm64, of which devices of its own take some; those of the newest version are counted here.
const MAX_DEVICES: usize = if cfg!(target_arch = "aarch64") {
    92
} else {
    17
};
/// How long it may take to end after it closed its API.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A machine that was stopped in time: its devices' state, and its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The file with the state.
    pub state: PathBuf,
    /// The file with the memory. A restored machine reads it as long as it lives.
    pub memory: PathBuf,
}

/// A machine in a Firecracker process.
pub struct FirecrackerMachine {
    // Dropped first: nothing it still does is waited for.
    vmm: Vmm,
    network: Option<Network>,
    api: Api,
    files: Files,
}

/// What a machine is launched with, beside its own specification.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) binary: &'a FirecrackerBinary,
    pub(super) jailer: Option<&'a JailerBinary>,
    pub(super) tuning: &'a Tuning,
    pub(super) passt: Option<&'a Passt>,
    pub(super) limit: Duration,
}

impl FirecrackerMachine {
    pub(super) fn launch(about: &About<'_>, spec: &MachineSpec) -> Result<Self, Error> {
        check(about, spec)?;
        let spec = &with_flat_disks(spec, "Firecracker")?;
        let kernel = BootFile::open("kernel", &spec.kernel)?;
        let initramfs = BootFile::open("initramfs", &spec.initramfs)?;
        let boot = BootSource {
            kernel_image_path: &kernel.name,
            initrd_path: &initramfs.name,
            boot_args: KERNEL_LINE.to_owned(),
        };
        let copies = kernel.copy.into_iter().chain(initramfs.copy).collect();
        let machine = Self::spawn(about, spec, copies)?;
        machine.or_last_words(about.binary, |machine| {
            machine.configure(about.tuning, spec, &boot)
        })
    }

    pub(super) fn restore(
        about: &About<'_>,
        spec: &MachineSpec,
        snapshot: &Snapshot,
    ) -> Result<Self, Error> {
        check(about, spec)?;
        let spec = &with_flat_disks(spec, "Firecracker")?;
        let machine = Self::spawn(about, spec, Vec::new())?;
        machine.or_last_words(about.binary, |machine| {
            machine
                .api
                .load_snapshot(&snapshot.state, &snapshot.memory, true)?;
            machine.vmm.check_confinement()
        })
    }

    /// This machine, if `step` succeeds; otherwise the error, or what the process said if it
    /// ended over it.
    fn or_last_words(
        self,
        binary: &FirecrackerBinary,
        step: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        match step(&self) {
            Ok(()) => Ok(self),
            Err(error) => match self.vmm.wait(Duration::from_millis(100)) {
                Ok(Some(_)) => Err(self.start_failure(binary, &error.to_string())),
                _ => Err(error),
            },
        }
    }

    fn start_failure(mut self, binary: &FirecrackerBinary, why: &str) -> Error {
        let how = match self.vmm.wait(END_LIMIT) {
            Ok(Some(Exit::Code(code))) => format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => format!("signal {signal}"),
            Ok(None) => "it still runs".to_owned(),
            Err(error) => error.to_string(),
        };
        // Also waits for the thread that gathers its words.
        self.vmm.end();
        let words = self.vmm.words();
        Error::VmmStart {
            program: binary.path().to_owned(),
            reason: if words.is_empty() {
                format!("{why} ({how})")
            } else {
                format!("{why} ({how}): {words}")
            },
        }
    }

    /// Presses Ctrl-Alt-Del: a guest with a keyboard driver reboots, and Firecracker ends (x86_64).
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn ctrl_alt_del(&self) -> Result<(), Error> {
        self.api.ctrl_alt_del()
    }

    /// Takes so much memory from the guest for the host; needs [`Tuning::balloon`].
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn inflate_balloon(&self, mebibytes: u32) -> Result<(), Error> {
        self.api.inflate(mebibytes)
    }

    /// Writes a snapshot of the machine, which must be paused, into [`Tuning::snapshots`]. It goes
    /// on from where it is when it is resumed. The contents of its disks are not part of it.
    ///
    /// # Errors
    /// In Firecracker's words.
    pub fn snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.api.create_snapshot(&snapshot.state, &snapshot.memory)
    }
}

impl Driven for FirecrackerMachine {
    fn process(&self) -> &Vmm {
        &self.vmm
    }

    /// It ends by itself, and calmly, when the guest resets and for no other reason.
    fn ended_by_guest(&self) -> bool {
        matches!(self.vmm.wait(Duration::ZERO), Ok(Some(Exit::Code(0))))
    }

    fn vsock(&self) -> &Path {
        &self.files.vsock
    }

    fn pause(&self) -> Result<(), Error> {
        self.api.set_state("freeze its vCPUs", VmState::Paused)
    }

    fn resume(&self) -> Result<(), Error> {
        self.api.set_state("thaw its vCPUs", VmState::Resumed)
    }

    /// Firecracker has no switch for its vsock. The socket by which new connections come is taken
    /// away, and those of the guest find nobody; the vCPUs are frozen for good, so that nothing
    /// moves on those that there are, until their other ends close them.
    fn sever(&self) -> Result<(), Error> {
        if let Some(network) = &self.network {
            network.sever();
        }
        remove(&self.files.vsock);
        self.pause()
    }
}

/// Whether it has room for the devices of a machine with so many disks.
pub(crate) const fn fits(disks: usize, network: NetworkMode) -> bool {
    devices(disks, network) <= MAX_DEVICES
}

/// The disks, the vsock, the random numbers, and the network card if there is one.
const fn devices(disks: usize, network: NetworkMode) -> usize {
    disks + 2 + matches!(network, NetworkMode::User) as usize
}

fn check(about: &About<'_>, spec: &MachineSpec) -> Result<(), Error> {
    crate::machine::check(spec)?;
    if spec.vcpus.get() > MAX_VCPUS {
        return Err(Error::Unsupported(format!(
            "Firecracker gives a machine at most {MAX_VCPUS} vCPUs, not {}; ask for fewer, or for the backend qemu",
            spec.vcpus
        )));
    }
    let devices = devices(spec.disks.len(), spec.network) + usize::from(about.tuning.balloon);
    if devices > MAX_DEVICES {
        return Err(Error::Unsupported(format!(
            "Firecracker has room for {MAX_DEVICES} devices in a machine, and it has {devices}; attach fewer disks, or ask for the backend qemu"
        )));
    }
    if spec.network == NetworkMode::User && about.passt.is_none() {
        return Err(Error::Unsupported(format!(
            "the network mode user needs passt with Firecracker; {}, or use the network mode isolated, or the backend qemu",
            crate::network::REMEDY
        )));
    }
    Ok(())
}
