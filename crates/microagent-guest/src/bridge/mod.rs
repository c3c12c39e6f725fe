//! Connections of programs in the guest that are carried to the host or from it, byte by byte. It
//! knows sockets; what they carry is nobody's business here.

mod forward;
mod mediation;

use std::{os::fd::AsFd, time::Duration};

use rustix::net::sockopt::set_socket_linger;

pub(crate) use self::{forward::connect, mediation::serve};

/// Makes the end of a TCP connection a reset, for a peer that was promised more than it gets.
fn reset_at_end(socket: &impl AsFd) {
    // A Unix socket has no reset, and its end says enough.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}
