//! The `Hypervisor` and `Machine` traits and their drivers.
//!
//! This crate owns how a virtual machine is launched, watched and controlled
//! on each VMM. It knows nothing of images, workspaces or supervisors: it is
//! given files and sizes, and gives back a machine with a vsock.

mod error;
mod machine;

pub use error::Error;
pub use machine::{
    Capabilities, ConsoleSpec, DiskSpec, Exit, Hypervisor, Machine, MachineSpec, NetworkPlan,
    VsockSpec,
};
