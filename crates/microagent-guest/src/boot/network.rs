//! The network: loopback always, and static settings for the one interface.

use std::{
    io,
    mem::zeroed,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use microagent_protocol::guest::{GuestIpv6, GuestNetwork};
use rustix::{
    fs::{Access, AtFlags, CWD, Dir, Mode, OFlags, accessat, openat},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::error::{Context, Error};

/// How long the interface may take to appear.
const WAIT: Duration = Duration::from_secs(5);

/// Brings the loopback up; the kernel gives it 127.0.0.1 and ::1 itself.
pub(crate) fn raise_loopback() -> Result<(), Error> {
    Interface::open("lo")?.raise()
}

/// Where the kernel lists its interfaces and takes settings of them. Open, they are there while the
/// root changes.
#[derive(Debug)]
pub(crate) struct Settings {
    interfaces: OwnedFd,
    /// A kernel without networks has none.
    files: Option<OwnedFd>,
}

impl Settings {
    /// Before the root changes; `/sys` and `/proc` are mounted.
    pub(crate) fn open() -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = |path| openat(CWD, path, flags, Mode::empty());
        Ok(Self {
            interfaces: folder("/sys/class/net").context("open /sys/class/net")?,
            files: folder("/proc/sys/net").ok(),
        })
    }

    /// A kernel without the setting keeps its own rule.
    fn set(&self, file: &str, value: &str) {
        let Some(files) = &self.files else { return };
        if let Ok(file) = openat(files, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            let _ = rustix::io::write(file, value.as_bytes());
        }
    }

    /// What container users count on: low ports and echo requests without root.
    pub(crate) fn relax(&self) {
        self.set("ipv4/ip_unprivileged_port_start", "0");
        self.set("ipv4/ping_group_range", "0 2147483647");
    }

    /// Applies `network` to the one interface that is not the loopback.
    pub(crate) fn configure(&self, network: &GuestNetwork) -> Result<(), Error> {
        let mask = netmask(network.prefix)?;
        let interface = Interface::open(&self.wait_for_interface()?)?;
        if network.ipv6.is_some() {
            self.keep_ipv6_static(&interface.name);
        }
        interface.set_address(libc::SIOCSIFADDR, network.address)?;
        interface.set_address(libc::SIOCSIFNETMASK, mask)?;
        interface.raise()?;
        interface.add_default_route(network.gateway)?;
        match &network.ipv6 {
            Some(ipv6) => interface.configure_ipv6(ipv6),
            None => Ok(()),
        }
    }

    /// Nobody else's word is taken for its addresses, and nobody is asked whether they are taken:
    /// they can be used at once.
    fn keep_ipv6_static(&self, interface: &str) {
        for (file, value) in [
            ("accept_ra", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
        ] {
            // Where the kernel has no IPv6, there is none to configure.
            self.set(&format!("ipv6/conf/{interface}/{file}"), value);
        }
    }

    fn wait_for_interface(&self) -> Result<String, Error> {
        let deadline = Instant::now() + WAIT;
        loop {
            let found = first_interface(&self.interfaces).context("list the network interfaces")?;
            if let Some(name) = found {
                return Ok(name);
            }
            if Instant::now() >= deadline {
                return Err(Error::NoInterface {
                    seconds: WAIT.as_secs(),
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn netmask(prefix: u8) -> Result<Ipv4Addr, Error> {
    match prefix {
        1..=32 => Ok(Ipv4Addr::from_bits(u32::MAX << (32 - prefix))),
        _ => Err(Error::Malformed {
            what: format!("the network prefix {prefix}"),
            why: "it takes 1 to 32".to_owned(),
        }),
    }
}

/// The first interface with a device behind it.
fn first_interface(folder: &OwnedFd) -> Result<Option<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if !name.starts_with('.')
            && accessat(
                folder,
                format!("{name}/device"),
                Access::EXISTS,
                AtFlags::empty(),
            )
            .is_ok()
        {
            names.push(name.to_owned());
        }
    }
    Ok(names.into_iter().min())
}

struct Interface {
    name: String,
    socket: OwnedFd,
}

impl Interface {
    fn open(name: &str) -> Result<Self, Error> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("open a socket")?;
        Ok(Self {
            name: name.to_owned(),
            socket,
        })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        // The last byte stays NUL.
        let last = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name[..last].iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn control<T>(&self, number: libc::c_ulong, argument: &mut T, what: &str) -> Result<(), Error> {
        // SAFETY: every caller passes the structure that belongs to the number,
        // and it lives through the call.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                number as libc::Ioctl,
                &raw mut *argument,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context(format_args!(
                "{what} of the network interface {}",
                self.name
            ));
        }
        Ok(())
    }

    fn raise(&self) -> Result<(), Error> {
        let mut request = self.request();
        self.control(libc::SIOCGIFFLAGS, &mut request, "read the flags")?;
        // SAFETY: SIOCGIFFLAGS has just written this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.control(libc::SIOCSIFFLAGS, &mut request, "set the flags")
    }

    fn set_address(&self, number: libc::c_ulong, address: Ipv4Addr) -> Result<(), Error> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.control(
            number,
            &mut request,
            &format!("set the address or mask {address}"),
        )
    }

    /// Sets the address and the gateway; a kernel without IPv6 goes without.
    fn configure_ipv6(&self, ipv6: &GuestIpv6) -> Result<(), Error> {
        let flags = SocketFlags::CLOEXEC;
        let socket = match socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AFNOSUPPORT) => return Ok(()),
            Err(error) => return Err(error).context("open an IPv6 socket"),
        };
        let mut request = self.request();
        self.control(libc::SIOCGIFINDEX, &mut request, "read the number")?;
        // SAFETY: SIOCGIFINDEX has just written this member.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        let by_ipv6 = Self {
            name: self.name.clone(),
            socket,
        };
        let mut request = Ipv6Request {
            address: ipv6_address(ipv6.address),
            prefix: ipv6.prefix.into(),
            index,
        };
        let what = format!("set the address {}", ipv6.address);
        by_ipv6.control(libc::SIOCSIFADDR, &mut request, &what)?;
        let mut route = Ipv6Route {
            target: ipv6_address(Ipv6Addr::UNSPECIFIED),
            source: ipv6_address(Ipv6Addr::UNSPECIFIED),
            gateway: ipv6_address(ipv6.gateway),
            kind: 0,
            target_length: 0,
            source_length: 0,
            metric: 1024,
            info: 0,
            flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
            index,
        };
        let what = format!("set the gateway {}", ipv6.gateway);
        by_ipv6.control(libc::SIOCADDRT, &mut route, &what)
    }

    fn add_default_route(&self, gateway: Ipv4Addr) -> Result<(), Error> {
        // SAFETY: all-zero bytes are a valid rtentry.
        let mut route: libc::rtentry = unsafe { zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.control(
            libc::SIOCADDRT,
            &mut route,
            &format!("set the gateway {gateway}"),
        )
    }
}

/// `struct in6_ifreq`, linux/ipv6.h.
#[repr(C)]
struct Ipv6Request {
    address: libc::in6_addr,
    prefix: u32,
    index: libc::c_int,
}

/// `struct in6_rtmsg`, linux/ipv6_route.h.
#[repr(C)]
struct Ipv6Route {
    target: libc::in6_addr,
    source: libc::in6_addr,
    gateway: libc::in6_addr,
    kind: u32,
    target_length: u16,
    source_length: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: libc::c_int,
}

fn ipv6_address(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr {
        s6_addr: address.octets(),
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all-zero bytes are a valid sockaddr.
    let mut generic: libc::sockaddr = unsafe { zeroed() };
    generic.sa_family = libc::AF_INET as libc::sa_family_t;
    // A sockaddr_in has its port in the first two bytes and its address in the next four.
    for (to, from) in generic.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    generic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_masks() {
        assert_eq!(netmask(24).unwrap(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32).unwrap(), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(1).unwrap(), Ipv4Addr::new(128, 0, 0, 0));
        assert!(netmask(0).is_err() && netmask(33).is_err());
    }
}
