//! The contract between a supervisor and a driver.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use microagent_protocol::{
    Backend, Capabilities, Confinement, ConfinementMode, Mebibytes, NetworkMode, NetworkProvider,
    ProcessIdentity, VcpuCount,
};

/// What a disk's file is. It is told, never guessed: a guest could write what a guess would fall for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskForm {
    /// The disk's bytes.
    Raw,
    /// A list of the files that hold the disk's bytes ([`microagent_disk::DiskList`]); such a disk is read-only.
    Joined,
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its file.
    pub path: PathBuf,
    /// What is in that file.
    pub form: DiskForm,
    /// What the guest sees as the disk's serial where the VMM can show one: 1
    /// to 20 of `a-z`, `0-9`, `-`.
    pub serial: String,
    /// The VMM opens it read-only and refuses writes of the guest.
    pub read_only: bool,
}

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// The log file; a full one is renamed to `<path>.1`, which replaces an older one.
    pub log: PathBuf,
    /// The most bytes in one file.
    pub limit: u64,
}

/// The machine's vsock, shown to the host as Firecracker's hybrid Unix socket:
/// connect to `uds` and write `CONNECT <port>\n` to reach a guest port;
/// the guest reaches host port P where somebody listens at `<uds>_<P>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's context identifier.
    pub cid: u32,
    /// The Unix socket, made by the driver.
    pub uds: PathBuf,
}

/// Everything a driver is told about a machine. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// A name for process lists and logs; never interpreted.
    pub name: String,
    /// Guest memory.
    pub memory: Mebibytes,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// The kernel, an uncompressed ELF image with a PVH entry.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Disks in the order the guest is to see them.
    pub disks: Vec<DiskSpec>,
    /// How it is connected.
    pub network: NetworkMode,
    /// Its vsock.
    pub vsock: VsockSpec,
    /// Its serial console.
    pub console: ConsoleSpec,
    /// How much its VMM is held back.
    pub confinement: ConfinementMode,
    /// A private directory (0700) with a short path for the driver's sockets.
    pub runtime_dir: PathBuf,
    /// Which attempt at this boot it is, from 0. A driver may choose a safer
    /// machine type for a later one.
    pub attempt: u32,
}

/// What a driver's network looks like from inside the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// What carries it.
    pub provider: NetworkProvider,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Its prefix length in bits.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// The same by IPv6, where there is a way out by it.
    pub ipv6: Option<Ipv6Plan>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// The IPv6 side of a [`NetworkPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Plan {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// Its prefix length in bits.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Ipv6Addr,
}

/// One direction of a serial console: a socket where there are Unix sockets, else a pipe.
#[cfg(unix)]
pub type SerialStream = std::os::unix::net::UnixStream;
/// One direction of a serial console: a socket where there are Unix sockets, else a pipe.
#[cfg(windows)]
pub type SerialStream = std::fs::File;

/// Both directions of a serial console.
#[derive(Debug)]
pub struct SerialPort {
    /// What the guest writes from the moment the port was asked for. Ends with the machine, or
    /// when its reader is too far behind: the guest never waits for it.
    pub output: SerialStream,
    /// What is written here is typed into the guest's console. It takes no more while the guest
    /// does not read, and fails when the machine has ended.
    pub input: SerialStream,
}

/// How a VMM's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A driver: one way to run machines.
pub trait Hypervisor: Send + Sync {
    /// Which backend it is.
    fn backend(&self) -> Backend;

    /// What it can do: what [`Backend::capabilities`] says of it, which the conformance suite
    /// proves for each driver.
    fn capabilities(&self) -> Capabilities;

    /// The network a guest finds; `None` if `mode` gives it none.
    fn network_plan(&self, mode: NetworkMode) -> Option<NetworkPlan>;

    /// Launches a machine and returns once its VMM runs. Listeners for the
    /// guest's connections (`<uds>_<port>`) must exist before this is called.
    ///
    /// # Errors
    /// The driver's error; nothing is left behind then.
    fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, crate::Error>;
}

/// A machine whose VMM was launched. Dropping it kills the VMM, waits for it
/// and removes the driver's sockets.
pub trait Machine: Send + Sync {
    /// The VMM's process.
    fn vmm(&self) -> ProcessIdentity;

    /// Becomes readable when the VMM ended (a pidfd).
    #[cfg(unix)]
    fn exit_fd(&self) -> std::os::fd::BorrowedFd<'_>;

    /// Becomes signalled when the VMM ended.
    #[cfg(windows)]
    fn exit_handle(&self) -> std::os::windows::io::BorrowedHandle<'_>;

    /// Waits at most `limit` for the VMM to end. May be called again after it did.
    ///
    /// # Errors
    /// If the process cannot be waited for.
    fn wait(&self, limit: Duration) -> Result<Option<Exit>, crate::Error>;

    /// Whether the guest itself ended the machine, by a power-off or a reset. To be asked once it
    /// has ended.
    fn ended_by_guest(&self) -> bool;

    /// Where the host connects to guest ports.
    fn vsock(&self) -> &Path;

    /// Another look at the serial console, which goes to its log all the same.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] from a driver without it; if the machine has ended, or
    /// the system has no more sockets.
    fn console(&self) -> Result<SerialPort, crate::Error> {
        Err(crate::Error::Unsupported(
            "this backend's serial console cannot be attached to".to_owned(),
        ))
    }

    /// Freezes all vCPUs; returns once they are. Freezing a frozen machine is no error.
    ///
    /// # Errors
    /// If the VMM does not obey within a few seconds.
    fn pause(&self) -> Result<(), crate::Error>;

    /// Thaws all vCPUs. Thawing a running machine is no error.
    ///
    /// # Errors
    /// If the VMM does not obey within a few seconds.
    fn resume(&self) -> Result<(), crate::Error>;

    /// Cuts the network and all vsock connections and refuses new ones, at once and for good.
    ///
    /// # Errors
    /// If the VMM does not obey; whatever could be cut is cut.
    fn sever(&self) -> Result<(), crate::Error>;

    /// What holds the VMM back, measured now.
    fn confinement(&self) -> Confinement {
        Confinement::default()
    }

    /// The VMM's own last words, made safe to show; all of them once it has ended.
    fn words(&self) -> String;

    /// Kills the VMM. Killing a dead one is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn kill(&self) -> Result<(), crate::Error>;
}

/// What every driver refuses.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn check(spec: &MachineSpec) -> Result<(), crate::Error> {
    let named = [
        &spec.kernel,
        &spec.initramfs,
        &spec.console.log,
        &spec.vsock.uds,
        &spec.runtime_dir,
    ];
    let disks = spec.disks.iter().map(|disk| &disk.path);
    if let Some(path) = named
        .into_iter()
        .chain(disks)
        .find(|path| !path.is_absolute())
    {
        return Err(crate::Error::Invalid(format!(
            "{} is not an absolute path",
            path.display()
        )));
    }
    if let Some(disk) = spec
        .disks
        .iter()
        .find(|disk| disk.form == DiskForm::Joined && !disk.read_only)
    {
        return Err(crate::Error::Invalid(format!(
            "{} is in several files, which other machines use too: it can only be read",
            disk.path.display()
        )));
    }
    if spec.memory.0 == 0 {
        return Err(crate::Error::Invalid("it has no memory".to_owned()));
    }
    Ok(())
}
