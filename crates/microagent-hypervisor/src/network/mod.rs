//! The `user` network of a machine: connections outwards with the host user's reach, without
//! privileges. One implementation for all drivers:
//!
//! ```text
//! guest ── VMM ══ frames ══ relay (this process, asks policy) ══ frames ══ passt ── host's sockets
//! ```
//!
//! QEMU inherits its end of the wire. Firecracker takes only a tap: it is in the VMM's own network
//! namespace, and a packet socket on it is the relay's end.
//!
//! `passt` turns the guest's TCP, UDP and ICMP into ordinary sockets of the host. `relay` stands
//! between the two: it lets out only what `policy` allows, and cutting it cuts the network, at once
//! and whatever the VMM does.

mod passt;
mod policy;
mod relay;
pub(crate) mod tap;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::net::UnixStream,
};

use microagent_protocol::NetworkProvider;

pub use self::passt::Passt;
pub(crate) use self::passt::REMEDY;
use crate::{Error, Ipv6Plan, NetworkPlan};

/// What every guest in a `user` network finds, whoever provides it.
pub(crate) struct Addresses<A> {
    pub network: A,
    pub prefix: u8,
    pub guest: A,
    pub gateway: A,
    pub dns: A,
}

pub(crate) const IPV4: Addresses<Ipv4Addr> = Addresses {
    network: Ipv4Addr::new(10, 0, 2, 0),
    prefix: 24,
    guest: Ipv4Addr::new(10, 0, 2, 15),
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    dns: Ipv4Addr::new(10, 0, 2, 3),
};

/// A unique local network (RFC 4193): programs prefer IPv4 where both lead to the target.
pub(crate) const IPV6: Addresses<Ipv6Addr> = Addresses {
    network: Ipv6Addr::new(0xfd6d, 0x6963, 0x726f, 0, 0, 0, 0, 0),
    prefix: 64,
    guest: Ipv6Addr::new(0xfd6d, 0x6963, 0x726f, 0, 0, 0, 0, 0x15),
    gateway: Ipv6Addr::new(0xfd6d, 0x6963, 0x726f, 0, 0, 0, 0, 2),
    // Names are asked for by IPv4.
    dns: Ipv6Addr::UNSPECIFIED,
};

/// The network card's address.
pub(crate) const MAC: &str = "52:54:00:6d:61:01";

/// The network a guest finds.
pub(crate) fn plan(provider: NetworkProvider, ipv6: bool) -> NetworkPlan {
    NetworkPlan {
        provider,
        address: IPV4.guest,
        prefix: IPV4.prefix,
        gateway: IPV4.gateway,
        ipv6: ipv6.then_some(Ipv6Plan {
            address: IPV6.guest,
            prefix: IPV6.prefix,
            gateway: IPV6.gateway,
        }),
        dns: vec![IpAddr::V4(IPV4.dns)],
    }
}

/// A machine's network. Dropping it cuts it and waits until its passt, if it has one by then, is gone.
pub(crate) struct Network(relay::Relay);

impl Network {
    /// Starts the relay of a machine, to a passt of its own that the first frame starts. The other end
    /// is for the VMM: frames, each after its length in four bytes, the most significant first.
    pub(crate) fn start(passt: &Passt) -> Result<(Self, UnixStream), Error> {
        let (here, there) = UnixStream::pair().map_err(|source| Error::Io {
            context: "make a socket pair for the network".to_owned(),
            source,
        })?;
        let relay = relay::Relay::start(passt, relay::Wire::Stream(here))?;
        Ok((Self(relay), there))
    }

    /// The same for a VMM that has made a tap: `channel` is the other end of the one it was given.
    pub(crate) fn start_on_tap(passt: &Passt, channel: &UnixStream) -> Result<Self, Error> {
        let packets = tap::take(channel).map_err(|source| Error::Io {
            context: "take the other side of the VMM's tap".to_owned(),
            source,
        })?;
        let relay = relay::Relay::start(passt, relay::Wire::Packets(packets))?;
        Ok(Self(relay))
    }

    /// Cuts it, at once and for good.
    pub(crate) fn sever(&self) {
        self.0.sever();
    }
}
