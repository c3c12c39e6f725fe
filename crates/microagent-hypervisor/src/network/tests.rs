//! A guest that sends what it likes, a real passt, and real servers of this host.

use std::{
    io::{Read, Write},
    net::{SocketAddrV4, TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use microagent_host::process::readable_by;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x6d, 0x61, 1];
const GUEST_PORT: u16 = 40_000;
const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

/// A guest without a kernel in between: it can send what no Linux would.
struct Rogue {
    wire: UnixStream,
    network: Network,
    gateway_mac: [u8; 6],
}

impl Rogue {
    fn new() -> Self {
        let passt = Passt::find(&std::env::var_os("PATH").unwrap())
            .unwrap_or_else(|error| panic!("{error}"));
        let (network, wire) = Network::start(&passt).unwrap();
        let mut rogue = Self {
            wire,
            network,
            gateway_mac: [0xff; 6],
        };
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(GUEST_MAC);
        arp.extend(IPV4.guest.octets());
        arp.extend([0; 6]);
        arp.extend(IPV4.gateway.octets());
        rogue.send([8, 6], &arp);
        let answer = rogue.receive(SOON).expect("an answer to ARP");
        rogue.gateway_mac.copy_from_slice(&answer[6..12]);
        rogue
    }

    fn send(&mut self, kind: [u8; 2], packet: &[u8]) {
        let frame = [&self.gateway_mac[..], &GUEST_MAC, &kind, packet].concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.wire
            .write_all(&[&length[..], &frame].concat())
            .unwrap();
    }

    fn receive(&mut self, limit: Duration) -> Option<Vec<u8>> {
        if !readable_by(&self.wire, Instant::now() + limit).unwrap() {
            return None;
        }
        let mut length = [0; 4];
        self.wire.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.wire.read_exact(&mut frame).unwrap();
        Some(frame)
    }

    fn ipv4(&mut self, protocol: u8, target: Ipv4Addr, payload: &[u8]) {
        let length = u16::try_from(20 + payload.len()).unwrap();
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
        packet.extend(IPV4.guest.octets());
        packet.extend(target.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        self.send([8, 0], &packet);
    }

    /// Asks for a connection.
    fn knock(&mut self, target: SocketAddrV4) {
        let mut tcp = Vec::new();
        tcp.extend(GUEST_PORT.to_be_bytes());
        tcp.extend(target.port().to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        let pseudo = [
            &IPV4.guest.octets()[..],
            &target.ip().octets(),
            &[0, 6, 0, 20],
            &tcp,
        ]
        .concat();
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        self.ipv4(6, *target.ip(), &tcp);
    }

    /// The flags of the next TCP answer.
    fn answer(&mut self, limit: Duration) -> Option<u8> {
        let deadline = Instant::now() + limit;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let frame = self.receive(left)?;
            if frame[12..14] == [8, 0] && frame[23] == 6 {
                return Some(frame[47]);
            }
        }
        None
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// This host's address on its way out.
fn outer_address() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent.
    socket.connect("203.0.113.1:9").expect("a route out");
    match socket.local_addr().unwrap().ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => unreachable!(),
    }
}

fn v4(ip: Ipv4Addr, listener: &TcpListener) -> SocketAddrV4 {
    SocketAddrV4::new(ip, listener.local_addr().unwrap().port())
}

#[test]
fn the_outside_is_reached_and_no_frame_gets_to_the_hosts_own() {
    let mut rogue = Rogue::new();
    let outer = outer_address();
    let server = TcpListener::bind((outer, 0)).unwrap();
    rogue.knock(v4(outer, &server));
    assert_eq!(rogue.answer(SOON), Some(SYN_ACK));
    server.accept().unwrap();

    // A frame no kernel would send: for the loopback, by the wire.
    let secret = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    secret.set_nonblocking(true).unwrap();
    for target in [
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(127, 0, 0, 53),
        Ipv4Addr::UNSPECIFIED,
        IPV4.gateway,
        IPV4.guest,
        Ipv4Addr::new(169, 254, 169, 254),
    ] {
        rogue.knock(v4(target, &secret));
    }
    // What comes after them and is answered shows that they were looked at.
    let after = TcpListener::bind((outer, 0)).unwrap();
    rogue.knock(v4(outer, &after));
    assert_eq!(rogue.answer(SOON), Some(SYN_ACK));
    after.accept().unwrap();
    assert_eq!(rogue.answer(Duration::from_millis(300)), None);
    assert_eq!(
        secret.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn names_are_asked_of_the_hosts_resolver() {
    let mut rogue = Rogue::new();
    // The root's name servers; any answer will do.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver = resolvers.lines().find_map(|line| {
        line.strip_prefix("nameserver ")?
            .trim()
            .parse::<Ipv4Addr>()
            .ok()
    });
    let direct = UdpSocket::bind("0.0.0.0:0").unwrap();
    direct
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let heard = resolver.is_some_and(|resolver| {
        direct.send_to(&query, (resolver, 53)).is_ok() && direct.recv(&mut [0; 512]).is_ok()
    });
    if !heard {
        testkit::skip_test(format_args!(
            "this host's own resolver ({resolver:?}) does not answer"
        ));
        return;
    }
    let mut udp = GUEST_PORT.to_be_bytes().to_vec();
    udp.extend(53_u16.to_be_bytes());
    udp.extend(u16::try_from(8 + query.len()).unwrap().to_be_bytes());
    udp.extend([0, 0]);
    udp.append(&mut query);
    rogue.ipv4(17, IPV4.dns, &udp);
    let answer = loop {
        let frame = rogue.receive(SOON).expect("an answer");
        if frame[12..14] == [8, 0] && frame[23] == 17 {
            break frame;
        }
    };
    assert_eq!(answer[26..30], IPV4.dns.octets());
    assert_eq!(answer[42..44], [0x12, 0x34]);
    assert_eq!(answer[44] & 0x80, 0x80, "no response");
}

#[test]
fn severing_takes_less_than_a_tenth_of_a_second() {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let mut rogue = Rogue::new();
            let outer = outer_address();
            let server = TcpListener::bind((outer, 0)).unwrap();
            rogue.knock(v4(outer, &server));
            assert_eq!(rogue.answer(SOON), Some(SYN_ACK));
            let (mut peer, _) = server.accept().unwrap();
            peer.set_read_timeout(Some(SOON)).unwrap();
            let start = Instant::now();
            rogue.network.sever();
            // Nothing more can be sent, and nothing comes.
            assert!(rogue.wire.write_all(&[0; 64]).is_err());
            assert_eq!(rogue.wire.read(&mut [0; 64]).unwrap(), 0);
            // passt goes, and its sockets with it: the peer sees the end.
            let ended = peer.read(&mut [0; 1]);
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
            assert_ne!(
                ended.err().map(|error| error.kind()),
                Some(std::io::ErrorKind::WouldBlock)
            );
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("severed after {times:?}");
    assert!(times[2] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn a_passt_that_answers_is_proved_and_another_program_is_not() {
    let passt = Passt::find(&std::env::var_os("PATH").unwrap()).unwrap();
    passt.prove().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("passt");
    std::os::unix::fs::symlink("/bin/false", &fake).unwrap();
    let error = Passt::find(dir.path().as_os_str())
        .unwrap()
        .prove()
        .unwrap_err();
    assert!(error.to_string().contains("it ended"), "{error}");
    std::fs::remove_file(&fake).unwrap();
    let missing = Passt::find(dir.path().as_os_str()).unwrap_err();
    assert!(missing.to_string().contains("install passt"), "{missing}");
}

#[test]
fn only_a_frame_that_may_go_out_starts_a_passt() {
    // One that cannot be started tells whether that was tried.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("passt");
    std::os::unix::fs::symlink("/bin/true", &program).unwrap();
    let passt = Passt::find(dir.path().as_os_str()).unwrap();
    std::fs::remove_file(&program).unwrap();
    let said_after = |kind: [u8; 2]| {
        let (mut guest, end) = UnixStream::pair().unwrap();
        let relay = relay::Relay::start(&passt, relay::Wire::Stream(end)).unwrap();
        let frame = [&[0xff; 6][..], &GUEST_MAC, &kind, &[0; 46]].concat();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        guest.write_all(&[&length[..], &frame].concat()).unwrap();
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        // The relay cuts the wire once it has looked at everything.
        guest.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(guest.read(&mut [0; 1]).unwrap(), 0);
        relay.end()
    };
    let tagged = said_after([0x81, 0]);
    assert_eq!(tagged, "");
    let arp = said_after([8, 6]);
    assert!(arp.contains("passt"), "{arp}");
}
