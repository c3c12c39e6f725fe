//! A network card for a VMM that takes nothing but a tap: made by the VMM's process in its own network
//! namespace, before it becomes the VMM. The other side of the wire, a packet socket on the tap, goes
//! back to this process. The namespace has no other way out.

use std::{
    ffi::CStr,
    io::IoSliceMut,
    mem::{MaybeUninit, zeroed},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
        sendmsg, socket_with,
    },
};

use crate::confine::last_errno;

/// The tap's name in the namespace.
pub(crate) const TAP: &str = "tap0";
const TAP_NAME: &CStr = c"tap0";
const TUN_DEVICE: &CStr = c"/dev/net/tun";
/// The kernel itself has nothing to say there.
const NO_IPV6: &CStr = c"/proc/sys/net/ipv6/conf/tap0/disable_ipv6";
/// `ETH_P_ALL`, linux/if_ether.h, in network order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Makes the tap in this process's network namespace for the user `owner`, and sends a packet socket
/// on it. Only system calls: this runs between fork and exec.
pub(crate) fn make(channel: BorrowedFd<'_>, owner: u32) -> Result<(), Errno> {
    let tun = openat(
        CWD,
        TUN_DEVICE,
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    control(&tun, libc::TUNSETIFF, &mut request)?;
    // Whoever has this user may take it, without any capability.
    set(&tun, libc::TUNSETOWNER, owner.into())?;
    set(&tun, libc::TUNSETPERSIST, 1)?;
    if let Ok(file) = openat(
        CWD,
        NO_IPV6,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        rustix::io::write(&file, b"1")?;
    }
    let protocol = std::num::NonZero::new(u32::from(ALL_PROTOCOLS)).map(Protocol::from_raw);
    let packets = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    let mut flags = self::request();
    flags.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    control(&packets, libc::SIOCSIFFLAGS, &mut flags)?;
    // Only now: a packet socket on what is down begins with an error.
    bind(&packets)?;
    let descriptors = [packets.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let word = [std::io::IoSlice::new(b"t")];
    sendmsg(channel, &word, &mut message, SendFlags::NOSIGNAL).map(drop)
}

/// The packet socket that the child sent before it executed its program.
pub(crate) fn take(channel: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; 1];
    recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut word)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    message
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| std::io::Error::other("the child sent no packet socket"))
}

#[allow(unsafe_code)]
fn request() -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.to_bytes()) {
        *to = (*from).cast_signed() as libc::c_char;
    }
    request
}

/// An ioctl that takes the address of an `ifreq`.
#[allow(unsafe_code)]
fn control(fd: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
    // SAFETY: the numbers used here all take an ifreq, which lives through the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *request) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// An ioctl that takes a number.
#[allow(unsafe_code)]
fn set(fd: &OwnedFd, number: libc::Ioctl, value: u64) -> Result<(), Errno> {
    // SAFETY: the numbers used here take an integer in the place of an address.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, value) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// Binds a packet socket to the tap, for what the VMM sends and not for what is sent to it.
#[allow(unsafe_code)]
fn bind(packets: &OwnedFd) -> Result<(), Errno> {
    let mut request = request();
    control(packets, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = ALL_PROTOCOLS;
    // SAFETY: SIOCGIFINDEX has just written this member.
    address.sll_ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
    let on: libc::c_int = 1;
    // SAFETY: the addresses and sizes are those of values that live through the calls, which
    // only read them.
    let failed = unsafe {
        libc::setsockopt(
            packets.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        ) == -1
            || libc::bind(
                packets.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            ) == -1
    };
    if failed { Err(last_errno()) } else { Ok(()) }
}
