//! What a guest may send into a `user` network: a pure function of one Ethernet frame. It is asked
//! about every frame before passt sees it, because passt carries whatever it is given, frames for
//! the host's own loopback included.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{IPV4, IPV6};

const ETHERNET: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// The largest frame passt takes: an Ethernet header and the longest IPv4 packet.
const LARGEST: usize = ETHERNET + 65_535;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DNS: u16 = 53;
const DHCP_SERVER: u16 = 67;

/// Metadata services of clouds that are at no link-local address. A host's credentials are there.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Whether the guest may send this frame.
pub(super) fn allows(frame: &[u8]) -> bool {
    if !(ETHERNET..=LARGEST).contains(&frame.len()) {
        return false;
    }
    match be16(frame, 12) {
        Some(TYPE_ARP) => true,
        Some(TYPE_IPV4) => allows_ipv4(&frame[ETHERNET..]),
        Some(TYPE_IPV6) => allows_ipv6(&frame[ETHERNET..]),
        // Tagged frames too: nobody would look behind the tag.
        _ => false,
    }
}

fn allows_ipv4(packet: &[u8]) -> bool {
    let Some((header, _)) = packet.split_first_chunk::<IPV4_HEADER>() else {
        return false;
    };
    if header[0] >> 4 != 4 {
        return false;
    }
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let (source, target) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
    let protocol = header[9];
    let port = transport_port(packet, usize::from(header[0] & 0xf) * 4);
    // A guest without an address asks for one; that is answered on this side of the host.
    let dhcp = protocol == UDP && port == Some(DHCP_SERVER);
    if target.is_broadcast() || target == IPV4.gateway {
        return dhcp;
    }
    if source != IPV4.guest {
        return false;
    }
    if target == IPV4.dns {
        return matches!(protocol, TCP | UDP) && port == Some(DNS);
    }
    reaches_ipv4(target)
}

/// Whether an address may lie beyond the host.
fn reaches_ipv4(target: Ipv4Addr) -> bool {
    let ours = target.to_bits() >> (32 - IPV4.prefix) == IPV4.guest.to_bits() >> (32 - IPV4.prefix);
    // 0/8 is "this host", 240/4 is reserved.
    let nowhere = target.octets()[0] == 0 || target.octets()[0] >= 240;
    !(ours
        || nowhere
        || target.is_loopback()
        || target.is_link_local()
        || target.is_multicast()
        || METADATA_V4.contains(&target))
}

fn allows_ipv6(packet: &[u8]) -> bool {
    let Some((header, payload)) = packet.split_first_chunk::<IPV6_HEADER>() else {
        return false;
    };
    if header[0] >> 4 != 6 {
        return false;
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let (source, target) = (address(8), address(24));
    // Who has this address? Asked of the link, and answered by passt itself.
    let neighbours = header[6] == ICMPV6 && matches!(payload.first(), Some(133 | 135 | 136));
    if neighbours
        && (target.is_multicast() || target.is_unicast_link_local() || target == IPV6.gateway)
    {
        return true;
    }
    source == IPV6.guest && reaches_ipv6(target)
}

fn reaches_ipv6(target: Ipv6Addr) -> bool {
    let ours =
        target.to_bits() >> (128 - IPV6.prefix) == IPV6.guest.to_bits() >> (128 - IPV6.prefix);
    // An IPv4 address in other clothes goes by IPv4 or not at all: ::a.b.c.d and ::ffff:a.b.c.d, and
    // those of a translator (64:ff9b::/96, 64:ff9b:1::/48).
    let first = target.segments()[0];
    let embedded = target.to_bits() >> 96 == 0 || (first == 0x64 && target.segments()[1] == 0xff9b);
    !(ours
        || embedded
        || target.is_unicast_link_local()
        || target.is_multicast()
        || METADATA_V6.contains(&target))
}

/// The port a first fragment is for.
fn transport_port(packet: &[u8], header: usize) -> Option<u16> {
    (header >= IPV4_HEADER).then_some(())?;
    be16(packet, header + 2)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ethernet(kind: u16, rest: &[u8]) -> Vec<u8> {
        [&[2; 12], &kind.to_be_bytes()[..], rest].concat()
    }

    fn ipv4(source: [u8; 4], target: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&target);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        ethernet(TYPE_IPV4, &packet)
    }

    fn ipv6(source: &str, target: &str, next: u8, first: u8) -> Vec<u8> {
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[6] = next;
        packet[8..24].copy_from_slice(&octets(source));
        packet[24..40].copy_from_slice(&octets(target));
        packet[40] = first;
        ethernet(TYPE_IPV6, &packet)
    }

    const GUEST: [u8; 4] = [10, 0, 2, 15];
    const GUEST_V6: &str = "fd6d:6963:726f::15";

    #[test]
    fn the_world_is_reached_and_the_host_is_not() {
        for target in [[192, 0, 2, 2], [8, 8, 8, 8], [10, 0, 3, 1], [172, 17, 0, 1]] {
            assert!(allows(&ipv4(GUEST, target, TCP, 80)), "{target:?}");
        }
        for target in [
            [127, 0, 0, 1],
            [127, 255, 255, 254],
            [0, 0, 0, 0],
            [169, 254, 169, 254],
            [169, 254, 170, 2],
            [100, 100, 100, 200],
            [168, 63, 129, 16],
            [192, 0, 0, 192],
            [224, 0, 0, 251],
            [255, 255, 255, 255],
            [240, 0, 0, 1],
            [10, 0, 2, 2],
            [10, 0, 2, 15],
            [10, 0, 2, 255],
        ] {
            for protocol in [1, TCP, UDP] {
                assert!(!allows(&ipv4(GUEST, target, protocol, 80)), "{target:?}");
            }
        }
        for target in ["2001:db8::1", "fd00::2", "2606:4700::1111"] {
            assert!(allows(&ipv6(GUEST_V6, target, TCP, 0)), "{target}");
        }
        for target in [
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a9fe:a9fe",
            "fe80::1",
            "ff02::fb",
            "fd00:ec2::254",
            "fd20:ce::254",
            GUEST_V6,
            "fd6d:6963:726f::2",
        ] {
            assert!(!allows(&ipv6(GUEST_V6, target, TCP, 135)), "{target}");
        }
    }

    #[test]
    fn what_a_network_needs_goes_through() {
        assert!(allows(&ethernet(TYPE_ARP, &[0; 28])));
        assert!(allows(&ipv4(GUEST, [10, 0, 2, 3], UDP, DNS)));
        assert!(allows(&ipv4(GUEST, [10, 0, 2, 3], TCP, DNS)));
        assert!(!allows(&ipv4(GUEST, [10, 0, 2, 3], TCP, 22)));
        assert!(allows(&ipv4([0; 4], [255; 4], UDP, DHCP_SERVER)));
        assert!(!allows(&ipv4([0; 4], [255; 4], UDP, 9)));
        for (target, kind) in [("ff02::1:ff00:2", 135), ("fe80::1", 136), ("ff02::2", 133)] {
            assert!(allows(&ipv6("fe80::5", target, ICMPV6, kind)), "{target}");
            assert!(!allows(&ipv6("fe80::5", target, ICMPV6, 128)), "{target}");
        }
    }

    #[test]
    fn nobody_else_is_spoken_for() {
        assert!(!allows(&ipv4([10, 0, 2, 16], [8, 8, 8, 8], TCP, 80)));
        assert!(!allows(&ipv4([127, 0, 0, 1], [8, 8, 8, 8], TCP, 80)));
        assert!(!allows(&ipv6("::1", "2001:db8::1", TCP, 0)));
    }

    #[test]
    fn what_cannot_be_read_stays_here() {
        let good = ipv4(GUEST, [8, 8, 8, 8], TCP, 80);
        assert!(allows(&good));
        for length in 0..ETHERNET + IPV4_HEADER {
            assert!(!allows(&good[..length]), "{length}");
        }
        let mut tagged = good.clone();
        tagged.splice(12..12, [0x81, 0, 0, 1]);
        assert!(!allows(&tagged));
        let mut six = good.clone();
        six[ETHERNET] = 0x65;
        assert!(!allows(&six));
        let mut long = good;
        long.resize(LARGEST + 1, 0);
        assert!(!allows(&long));
    }

    proptest! {
        /// Whatever else is in it, a frame for a denied address is denied.
        #[test]
        fn no_frame_reaches_the_loopback(
            mut frame in proptest::collection::vec(any::<u8>(), 34..200),
            rest in any::<[u8; 3]>(),
        ) {
            frame[12..14].copy_from_slice(&TYPE_IPV4.to_be_bytes());
            frame[30] = 127;
            frame[31..34].copy_from_slice(&rest);
            prop_assert!(!allows(&frame));
            frame[30..32].copy_from_slice(&[169, 254]);
            prop_assert!(!allows(&frame));
        }

        #[test]
        fn any_bytes_get_an_answer(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = allows(&frame);
        }
    }
}
