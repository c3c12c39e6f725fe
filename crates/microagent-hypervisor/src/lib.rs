//! The `Hypervisor` and `Machine` traits and their drivers.
//!
//! This crate owns how a virtual machine is launched, watched and controlled
//! on each VMM. It knows nothing of images, workspaces or supervisors: it is
//! given files and sizes, and gives back a machine with a vsock. It reads no
//! environment: search paths are arguments.
#![deny(unsafe_code)]

// Its rules are tested on any Unix; what calls the framework is compiled where that is.
#[cfg(any(target_os = "macos", all(test, unix)))]
pub mod apple_vz;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod boot;
#[cfg(target_os = "linux")]
mod boot_file;
#[cfg(target_os = "linux")]
mod confine;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod console;
#[cfg(target_os = "linux")]
mod driven;
mod error;
#[cfg(target_os = "linux")]
pub mod firecracker;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod flat;
#[cfg(unix)]
pub mod hybrid;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod identity;
mod machine;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod probe;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
pub mod qemu;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod report;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod text;
#[cfg(target_os = "linux")]
mod tsc;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)] // One borrowed descriptor, argued where it is.
pub mod vsock;

#[cfg(target_os = "linux")]
pub use confine::jailer::own_user as jailed_user;
pub use error::Error;
pub use machine::{
    ConsoleSpec, DiskForm, DiskSpec, Exit, Hypervisor, Ipv6Plan, Machine, MachineSpec, NetworkPlan,
    SerialPort, SerialStream, VsockSpec,
};
pub use microagent_protocol::Capabilities;
#[cfg(target_os = "linux")]
pub use program::Version;
#[cfg(target_os = "linux")]
pub use tsc::measure_tsc_khz;
