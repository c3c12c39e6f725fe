//! Signals that reach this process, as a container user expects: the first goes to the command,
//! a second Ctrl-C or SIGTERM tears everything down.

#[cfg(unix)]
mod handled;
#[cfg(not(unix))]
mod unheard;

use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering},
};

#[cfg(unix)]
pub(crate) use self::handled::{detach, forward, on_end};
#[cfg(not(unix))]
pub(crate) use self::unheard::{detach, forward, on_end};

/// The Linux signal of a terminal that hung up.
pub(crate) const HANG_UP: u8 = 1;

/// Whether a signal tore the run down.
#[derive(Clone, Debug, Default)]
pub(crate) struct TornDown(Arc<AtomicI32>);

impl TornDown {
    /// The signal that did.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Acquire))
            .ok()
            .filter(|signal| *signal != 0)
    }
}

/// The exit code of something that `signal` ended.
pub(crate) fn exit_code(signal: u8) -> u8 {
    128_u8.saturating_add(signal)
}
