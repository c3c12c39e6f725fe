//! The `Hypervisor` and `Machine` traits and their drivers.
//!
//! This crate owns how a virtual machine is launched, watched and controlled
//! on each VMM. It knows nothing of images, workspaces or supervisors: it is
//! given files and sizes, and gives back a machine with a vsock. It reads no
//! environment: search paths are arguments.
#![deny(unsafe_code)]

mod confine;
mod console;
mod error;
mod machine;
mod process;
pub mod qemu;
mod tsc;

pub use confine::Confinement;
pub use error::Error;
pub use machine::{
    Capabilities, ConsoleSpec, DiskSpec, Exit, Hypervisor, Machine, MachineSpec, NetworkPlan,
    VsockSpec,
};
pub use tsc::measure_tsc_khz;
