//! The guest protocol: host and guest agent over vsock.
//!
//! 1. The agent connects to the host's [`HELLO_PORT`] and sends
//!    [`GuestMessage::Hello`]. This is the *control connection*; it lives as
//!    long as the machine, and when it ends the agent powers the guest off.
//!    When it is reset, as a restored snapshot does, the agent connects and
//!    says hello again; of what it is told then it takes the time and the
//!    randomness, and is ready at once.
//! 2. The host answers [`HostMessage::Configure`]. The agent applies it and
//!    sends [`GuestMessage::Ready`], or [`GuestMessage::BootFailed`].
//! 3. The host opens sessions to the agent's [`AGENT_PORT`], one stream each
//!    (see [`crate::exec`]; a forwarded connection is a session, too).
//! 4. [`HostMessage::Shutdown`] ends the workload, syncs, unmounts, and powers off.
//!
//! Messages of the control connection are [`FrameKind::Control`] frames.
//! Unknown fields are ignored; an unknown message is an error.
//!
//! [`FrameKind::Control`]: crate::FrameKind::Control

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    copy::{CopyIn, CopyOut},
    exec::{ExecRequest, StartFailure},
    shell::{ShellLine, ShellOrigin},
};

/// The version of this protocol. Host and agent come from one executable, so
/// they are the same or something is wrong.
pub const GUEST_PROTOCOL: u32 = 2;

/// The host's vsock port for the control connection.
pub const HELLO_PORT: u32 = 1023;

/// The agent's vsock port for sessions.
pub const AGENT_PORT: u32 = 1024;

/// The vsock context identifier of the guest. Each machine has a vsock of its own.
pub const GUEST_CID: u32 = 3;

/// The virtio-blk serial of the base disk; the first disk where a VMM has no serials.
pub const BASE_SERIAL: &str = "base";

/// The virtio-blk serial of the scratch disk; the second disk where a VMM has no serials.
pub const SCRATCH_SERIAL: &str = "scratch";

/// From the agent to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GuestMessage {
    /// First words.
    Hello {
        /// [`GUEST_PROTOCOL`].
        protocol: u32,
        /// The running kernel's release (`uname -r`).
        kernel_release: String,
        /// Milliseconds from the kernel's start to the agent's.
        kernel_ms: u64,
    },
    /// The root is in place and sessions are served.
    Ready {
        /// Milliseconds from the kernel's start to now.
        uptime_ms: u64,
    },
    /// The agent cannot go on; it powers off after this.
    BootFailed {
        /// What it was doing, such as `mount the base disk`.
        stage: String,
        /// What went wrong.
        message: String,
    },
    /// The guest is going down: the agent got a shutdown request, or somebody
    /// inside asked for it (`poweroff`, `reboot`).
    GoingDown {
        /// Whether the host asked for it.
        requested: bool,
        /// Whether everything was synced and unmounted.
        clean: bool,
    },
}

/// From the host to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostMessage {
    /// Everything the guest is told about itself.
    Configure(Box<BootConfig>),
    /// End the workload by its stop signal, then everything else, and power off.
    Shutdown {
        /// How long the workload may take before it is killed, in milliseconds.
        grace_ms: u64,
    },
    /// Set the guest's clock (after the host slept, or a resume).
    SetClock {
        /// Nanoseconds since 1970, UTC.
        unix_nanos: u64,
    },
}

/// What one boot of a workspace is told. Nothing of this is on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BootConfig {
    /// The host name.
    pub hostname: String,
    /// The host's clock, nanoseconds since 1970, UTC.
    pub unix_nanos: u64,
    /// Fresh random bytes of the host for the guest's random number generator, in hexadecimal.
    pub entropy: String,
    /// How the guest is connected, if at all.
    #[serde(default)]
    pub network: Option<GuestNetwork>,
    /// Disks to mount after the root, in order.
    #[serde(default)]
    pub disks: Vec<DiskMount>,
    /// Ports the agent listens at for programs of the guest, on both loopbacks and at
    /// [`MediationRoute::socket`](crate::MediationRoute::socket): a connection there is carried to
    /// the same vsock port of the host.
    #[serde(default)]
    pub mediation: Vec<u16>,
}

/// Static network settings for the guest's one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GuestNetwork {
    /// The interface's IPv4 address.
    pub address: Ipv4Addr,
    /// The length of its network prefix, in bits.
    pub prefix: u8,
    /// The default gateway.
    pub gateway: Ipv4Addr,
    /// The same by IPv6, where the host has a way out by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<GuestIpv6>,
    /// Name servers, in order.
    pub dns: Vec<IpAddr>,
}

/// The IPv6 side of a [`GuestNetwork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GuestIpv6 {
    /// The interface's IPv6 address.
    pub address: Ipv6Addr,
    /// The length of its network prefix, in bits.
    pub prefix: u8,
    /// The default gateway.
    pub gateway: Ipv6Addr,
}

/// An extra disk and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiskMount {
    /// What people call it.
    #[serde(default)]
    pub name: String,
    /// The disk's virtio-blk serial.
    pub serial: String,
    /// Absolute path in the guest; made if missing.
    pub mountpoint: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// Opens a session on the agent's port. When the process or the line of one has ended, the same stream
/// takes the next. Not tagged inside, as everything else is: the agent would have to keep it all until
/// it had seen the tag, and under emulation that takes a tenth of a millisecond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SessionRequest {
    /// Run a process.
    Exec(ExecRequest),
    /// Run a line in the persistent shell.
    Shell(ShellLine),
    /// Pack something into a tar stream (see [`crate::copy`]).
    CopyOut(CopyOut),
    /// Land a tar stream.
    CopyIn(CopyIn),
    /// Connect to a TCP port of the guest's loopback, IPv4 first. After
    /// [`SessionReply::Opened`] the stream carries that connection's bytes, without frames.
    Forward {
        /// The port.
        port: u16,
        /// Whether its bytes are in pieces (two bytes of length, big-endian, before each; an empty one
        /// is a direction's end), as its own end of a direction is not to be had from this vsock.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pieces: bool,
    },
}

/// The agent's answer to a [`SessionRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum SessionReply {
    /// It runs; frames follow.
    Started {
        /// Its process number in the guest.
        pid: u32,
    },
    /// To a line: its turn has come; frames follow.
    Line {
        /// The shell's process number in the guest.
        pid: u32,
        /// Which shell it is.
        shell: ShellOrigin,
    },
    /// It is open: a connection's bytes follow, or a copy's frames.
    Opened,
    /// It never ran, or nothing listens; the session is over.
    Failed {
        /// Why.
        reason: StartFailure,
        /// The same for a person.
        message: String,
    },
}
