//! Apple's Virtualization.framework (its classes begin with `VZ`): the driver for Macs with Apple silicon.
//!
//! **Never linked and never run**: no Mac was there. What decides is in pure modules that any Unix tests: `plan`
//! (what the framework is asked for, and what it is not), `kernel`, `life` (how a machine ended), `bridge` (its
//! vsock as the hybrid socket), `verdict` (what this Mac can do). What calls the framework is type-checked for
//! macOS and as thin as it gets: `configuration`, `delegate`, `virtual_machine`, `machine`, `host`.
//!
//! A machine lives on a serial queue of its own and in this process: it ends when the process does. Nothing that
//! runs on the queue waits; whoever wants an answer waits for it elsewhere, with a limit.

// The machine's own code is all that uses these; a test of another system's has no need of it.
#[cfg_attr(not(target_os = "macos"), allow(dead_code))]
mod bridge;
pub mod kernel;
#[cfg_attr(not(target_os = "macos"), allow(dead_code))]
mod life;
pub mod plan;
mod refusal;
#[cfg_attr(not(target_os = "macos"), allow(dead_code))]
mod verdict;

#[cfg(target_os = "macos")]
#[allow(unsafe_code)] // Calls of the framework, each argued where it is.
mod configuration;
#[cfg(target_os = "macos")]
#[allow(unsafe_code)] // What the framework calls, and a descriptor of it.
mod delegate;
#[cfg(target_os = "macos")]
#[allow(unsafe_code)] // What is asked of the framework before there is a machine.
mod host;
#[cfg(target_os = "macos")]
mod machine;
#[cfg(target_os = "macos")]
#[allow(unsafe_code)] // Objects that one queue alone touches.
mod queue;
#[cfg(target_os = "macos")]
#[allow(unsafe_code)] // Calls of the framework, each argued where it is.
mod virtual_machine;

pub use self::refusal::Refusal;
#[cfg(target_os = "macos")]
pub use self::{host::probe, machine::AppleMachine};

/// The name of the check of the framework.
pub const CHECK_APPLE: &str = "virtualization-framework";

#[cfg(target_os = "macos")]
mod driver {
    use std::time::Duration;

    use microagent_protocol::{Backend, NetworkMode};

    use super::AppleMachine;
    use crate::{Capabilities, Error, Hypervisor, Machine, MachineSpec, NetworkPlan};

    /// The driver.
    #[derive(Clone, Debug)]
    pub struct AppleVz {
        start_limit: Duration,
    }

    impl Default for AppleVz {
        fn default() -> Self {
            Self {
                start_limit: Duration::from_secs(20),
            }
        }
    }

    impl AppleVz {
        /// The same with another limit until the framework says that the machine started (20 s).
        #[must_use]
        pub const fn start_limit(mut self, limit: Duration) -> Self {
            self.start_limit = limit;
            self
        }
    }

    impl Hypervisor for AppleVz {
        fn backend(&self) -> Backend {
            Backend::AppleVf
        }

        fn capabilities(&self) -> Capabilities {
            self.backend().capabilities()
        }

        /// None: `user` is refused when a machine is launched.
        fn network_plan(&self, _mode: NetworkMode) -> Option<NetworkPlan> {
            None
        }

        fn launch(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, Error> {
            Ok(Box::new(AppleMachine::launch(spec, self.start_limit)?))
        }
    }
}

#[cfg(target_os = "macos")]
pub use self::driver::AppleVz;
