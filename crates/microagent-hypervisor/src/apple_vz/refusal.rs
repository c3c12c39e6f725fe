//! What is refused before the framework is asked, and why.

use std::path::PathBuf;

/// A machine that Apple's framework is not asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The kernel is for another processor.
    #[error(
        "the kernel {} is {found}, and a Mac with Apple silicon runs arm64 guests alone; install an arm64 kernel",
        path.display()
    )]
    ForeignKernel {
        /// The kernel.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The kernel is packed, and the framework's loader unpacks nothing.
    #[error(
        "the kernel {} is {found}, and Apple's framework loads the flat arm64 Image alone; `microagent kernel install` stores kernels unpacked",
        path.display()
    )]
    PackedKernel {
        /// The kernel.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The kernel is nothing that is known.
    #[error(
        "the kernel {} has no arm64 Image header; name a kernel that `microagent kernel install` stored",
        path.display()
    )]
    NoKernel {
        /// The kernel.
        path: PathBuf,
    },
    /// The number of vCPUs is out of the framework's range.
    #[error(
        "{asked} vCPUs were asked for, and this Mac gives a machine {least} to {most}; ask for as many with --cpus"
    )]
    Vcpus {
        /// As the specification has it.
        asked: u64,
        /// The framework's lower limit.
        least: u64,
        /// The framework's upper limit.
        most: u64,
    },
    /// The memory is out of the framework's range.
    #[error(
        "{asked} MiB of memory were asked for, and this Mac gives a machine {least} to {most} MiB; ask for as many with --memory"
    )]
    Memory {
        /// As the specification has it.
        asked: u64,
        /// The framework's lower limit.
        least: u64,
        /// The framework's upper limit.
        most: u64,
    },
    /// A disk is a list of files.
    #[error(
        "the disk {} is a list of files, and Apple's framework reads raw disks alone; make one file of it first",
        path.display()
    )]
    JoinedDisk {
        /// The list.
        path: PathBuf,
    },
    /// A disk does not end with a block.
    #[error(
        "the disk {} has {bytes} bytes, and Apple's framework takes disks of whole blocks of 512 bytes; extend the file to {} bytes",
        path.display(), bytes.next_multiple_of(512).max(512)
    )]
    DiskSize {
        /// The disk.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A disk's serial is none that a virtio disk can show.
    #[error(
        "{serial:?}, the serial of the disk {}, is not 1 to 20 of a-z, 0-9 and -; give it such a serial",
        path.display()
    )]
    Serial {
        /// The disk.
        path: PathBuf,
        /// Its serial.
        serial: String,
    },
    /// Two disks could not be told apart in the guest.
    #[error("two disks have the serial {serial:?}; give each its own")]
    SameSerial {
        /// The serial.
        serial: String,
    },
    /// There are more devices than places.
    #[error("the machine has {asked} devices, and its bus has room for {most}; attach fewer disks")]
    Devices {
        /// Disks, vsock, console and random numbers.
        asked: usize,
        /// The places of the bus.
        most: usize,
    },
    /// The guest was to reach the network.
    #[error(
        "the network mode user is not written for apple-vf: nothing on a Mac holds a guest to its policy yet; use the network mode isolated, with published ports and mediation routes, which need no network card"
    )]
    UserNetwork,
    /// All layers of confinement were demanded.
    #[error(
        "the confinement that is required cannot be had with apple-vf: a machine runs in a process of Apple's, whose sandbox cannot be measured; MICROAGENT_CONFINEMENT=auto takes it as it is"
    )]
    Confinement,
    /// The guest's address is fixed.
    #[error(
        "the guest's context identifier {asked} was asked for, and Apple's framework gives each guest the identifier 3; ask for 3"
    )]
    ContextId {
        /// As the specification has it.
        asked: u32,
    },
    /// The framework's own paths are text.
    #[error(
        "{} is not UTF-8, and Apple's framework takes no other path; rename it",
        path.display()
    )]
    PathNotUtf8 {
        /// The path.
        path: PathBuf,
    },
}
