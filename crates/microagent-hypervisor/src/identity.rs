//! Which process it is.

use std::io;

use microagent_host::process::{boot_id, start_ticks};
use microagent_protocol::ProcessIdentity;

/// The identity of a process that cannot be reaped meanwhile.
pub(crate) fn identity_of(pid: u32) -> io::Result<ProcessIdentity> {
    Ok(ProcessIdentity {
        pid,
        start_ticks: start_ticks(pid)?,
        boot_id: boot_id()?,
    })
}
