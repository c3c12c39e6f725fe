//! Which passt, and one process of it. It gets its end of the wire as a descriptor, so there is no
//! socket in a directory that somebody else could find; it ends when that wire does, and with the
//! thread that started it.

use std::{
    ffi::OsStr,
    io::Read,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use microagent_host::process::readable_by;
use rustix::fs::{OFlags, fcntl_setfl};

use super::{
    IPV4, IPV6,
    relay::{Relay, Wire},
};
use crate::{Error, process::born_bound, program::find_program, text::printable};

/// The program.
const PROGRAM: &str = "passt";
/// What to install where it is missing.
pub(crate) const REMEDY: &str = "install passt, as root (Debian, Ubuntu: apt-get install passt; Fedora: dnf install passt; \
     Alpine: apk add passt; Arch: pacman -S passt)";
/// How long a passt may take until it answers; it takes some 50 ms.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The most of its own words that are looked at.
const WORDS_LIMIT: u64 = 4096;

/// A passt that can be used for `user` networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passt {
    path: PathBuf,
    ipv6: bool,
}

impl Passt {
    /// Finds it on a `PATH` value.
    ///
    /// # Errors
    /// [`Error::ProgramMissing`].
    pub fn find(search_path: &OsStr) -> Result<Self, Error> {
        let path = find_program(OsStr::new(PROGRAM), search_path).ok_or_else(|| {
            Error::ProgramMissing {
                program: PROGRAM.to_owned(),
                searched: search_path.to_string_lossy().into_owned(),
                remedy: REMEDY.to_owned(),
            }
        })?;
        Ok(Self {
            path,
            ipv6: has_ipv6_route(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether guests get an IPv6 address: where this host has a way out by IPv6.
    #[must_use]
    pub const fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Starts one and asks it for the gateway, as a guest would.
    ///
    /// # Errors
    /// In its own words.
    pub fn prove(&self) -> Result<(), Error> {
        let fail = |reason: String| Error::VmmStart {
            program: self.path.clone(),
            reason,
        };
        let (mut guest, end) = UnixStream::pair().map_err(|error| fail(error.to_string()))?;
        let relay = Relay::start(self, Wire::Stream(end))?;
        let asked = std::io::Write::write_all(&mut guest, &who_has(IPV4.gateway));
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut answer = [0; 4 + 42];
        let outcome = asked.map_err(|error| error.to_string()).and_then(|()| {
            let mut have = 0;
            while have < answer.len() {
                match readable_by(&guest, deadline) {
                    Ok(true) => {}
                    Ok(false) => return Err(format!("no answer within {ANSWER_LIMIT:?}")),
                    Err(error) => return Err(error.to_string()),
                }
                match guest.read(&mut answer[have..]) {
                    Ok(0) => return Err("it ended".to_owned()),
                    Ok(count) => have += count,
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(())
        });
        let words = relay.end();
        outcome.map_err(|why| {
            fail(match words.is_empty() {
                true => why,
                false => format!("{why}: {words}"),
            })
        })
    }

    /// Starts a process with this end of the wire. The calling thread must live as long as it.
    pub(super) fn spawn(&self, wire: UnixStream) -> Result<Process, Error> {
        let fail = |reason: String| Error::VmmStart {
            program: self.path.clone(),
            reason,
        };
        let (words, speaks) = std::io::pipe().map_err(|error| fail(error.to_string()))?;
        // Whatever a guest makes it say, it never waits for a reader.
        fcntl_setfl(&speaks, OFlags::NONBLOCK).map_err(|error| fail(error.to_string()))?;
        fcntl_setfl(&words, OFlags::NONBLOCK).map_err(|error| fail(error.to_string()))?;
        let wire = OwnedFd::from(wire);
        let mut command = Command::new(&self.path);
        command
            .args(self.arguments(wire.as_raw_fd()))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(speaks);
        born_bound(&mut command, vec![wire.as_raw_fd()]);
        let child = command.spawn().map_err(|error| fail(error.to_string()))?;
        tracing::debug!(pid = child.id(), "passt started");
        Ok(Process {
            child,
            words: words.into(),
        })
    }

    fn arguments(&self, wire: i32) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "--foreground",
            "--stderr",
            "--quiet",
            // The gateway's address leads nowhere, instead of to the host's loopback.
            "--no-map-gw",
            // The guest is told its addresses by its agent.
            "--no-ra",
            "--no-dhcpv6",
            // Nothing of the host is forwarded to the guest.
            "--tcp-ports",
            "none",
            "--udp-ports",
            "none",
        ]
        .map(str::to_owned)
        .into();
        let mut pair = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        pair("--fd", wire.to_string());
        pair("--address", IPV4.guest.to_string());
        pair("--netmask", IPV4.prefix.to_string());
        pair("--gateway", IPV4.gateway.to_string());
        pair("--dns-forward", IPV4.dns.to_string());
        if self.ipv6 {
            pair("--address", IPV6.guest.to_string());
            pair("--gateway", IPV6.gateway.to_string());
        } else {
            arguments.push("--ipv4-only".to_owned());
        }
        arguments
    }
}

/// A passt at work.
pub(super) struct Process {
    child: Child,
    words: OwnedFd,
}

impl Process {
    /// Ends it, if it has not ended, and gives what it said.
    pub(super) fn end(mut self) -> String {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            tracing::error!(%error, "passt could not be ended");
        }
        let mut words = Vec::new();
        // It never blocks: what is there is there.
        let _ = std::fs::File::from(self.words)
            .take(WORDS_LIMIT)
            .read_to_end(&mut words);
        printable(&words)
    }
}

/// Whether this host has a default route for IPv6.
fn has_ipv6_route() -> bool {
    std::fs::read_to_string("/proc/net/ipv6_route").is_ok_and(|routes| has_default(&routes))
}

/// proc_net_ipv6_route: target, its prefix length, source, its prefix length, next hop, metric,
/// reference count, use count, flags, device; in hexadecimal.
fn has_default(routes: &str) -> bool {
    /// `RTF_UP` and not `RTF_REJECT`.
    const UP: u32 = 1;
    const REJECT: u32 = 0x200;
    routes.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [target, length, .., flags, device] = &fields[..] else {
            return false;
        };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
        target.bytes().all(|byte| byte == b'0')
            && *length == "00"
            && *device != "lo"
            && flags & (UP | REJECT) == UP
    })
}

/// An ARP request of the guest's, after its length.
fn who_has(address: Ipv4Addr) -> Vec<u8> {
    const GUEST: [u8; 6] = [0x52, 0x54, 0x00, 0x6d, 0x61, 0x01];
    let mut frame = Vec::with_capacity(46);
    frame.extend(42_u32.to_be_bytes());
    frame.extend([0xff; 6]);
    frame.extend(GUEST);
    // ARP; Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend(IPV4.guest.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_out_by_ipv6_is_seen() {
        let line = |target: &str, length: &str, flags: &str, device: &str| {
            let none = "00000000000000000000000000000000";
            format!("{target} {length} {none} 00 {none} 00000400 1 0 {flags} {device}\n")
        };
        let zero = "00000000000000000000000000000000";
        assert!(has_default(&line(zero, "00", "00000003", "eth0")));
        assert!(!has_default(&line(zero, "00", "00200200", "lo")));
        assert!(!has_default(&line(zero, "40", "00000001", "eth0")));
        assert!(!has_default(&line(
            &zero.replace("00000000", "fd000000"),
            "00",
            "00000001",
            "eth0"
        )));
        assert!(!has_default("") && !has_default("x\n"));
    }
}
