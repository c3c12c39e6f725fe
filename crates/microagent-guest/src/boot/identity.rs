//! Who the machine is: its name, its names for others, its clock and its randomness.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    net::IpAddr,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use microagent_protocol::guest::{BootConfig, GuestNetwork};
use rustix::system::sethostname;

use crate::{
    console,
    error::{Context, Error},
};

/// The longest host name Linux takes.
const LONGEST_NAME: usize = 64;

/// Sets the host name and writes the files of `/etc` that go with it.
pub(crate) fn apply(config: &BootConfig) -> Result<(), Error> {
    let name = &config.hostname;
    check_name(name)?;
    sethostname(name.as_bytes()).context(format_args!("set the host name {name:?}"))?;
    let etc = Path::new("/etc");
    let mut files = vec![
        ("hostname", format!("{name}\n")),
        ("hosts", hosts(name, config.network.as_ref())),
    ];
    if let Some(network) = &config.network {
        files.push(("resolv.conf", resolv_conf(&network.dns)));
    }
    if !etc.is_dir() {
        fs::create_dir(etc).context("make the directory /etc")?;
    }
    for (file, content) in files {
        let path = etc.join(file);
        if let Err(error) = replace(&path, content.as_bytes()) {
            // An odd image; the machine itself can run.
            console::say(format_args!("write {}: {error}", path.display()));
        }
    }
    Ok(())
}

/// Mixes the host's random bytes into the kernel's pool and credits them, so
/// that nothing in the guest waits for randomness.
pub(crate) fn seed(entropy: &str) -> Result<(), Error> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        length: libc::c_int,
        bytes: [u8; MOST_ENTROPY],
    }
    let seed = decode_hex(entropy)?;
    if seed.is_empty() {
        return Ok(());
    }
    let length = seed.len() as libc::c_int;
    let mut info = PoolInfo {
        entropy_bits: length * 8,
        length,
        bytes: [0; MOST_ENTROPY],
    };
    info.bytes[..seed.len()].copy_from_slice(&seed);
    let device = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .context("open /dev/urandom")?;
    // SAFETY: `info` is a rand_pool_info whose length says how many of its bytes count.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("seed the random number generator");
    }
    Ok(())
}

/// The most random bytes the host may send.
const MOST_ENTROPY: usize = 512;

fn decode_hex(text: &str) -> Result<Vec<u8>, Error> {
    let malformed = |why: &str| Error::Malformed {
        what: "the entropy".to_owned(),
        why: why.to_owned(),
    };
    if text.len() > 2 * MOST_ENTROPY {
        return Err(malformed("it is too long"));
    }
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return Err(malformed("its length is odd"));
    };
    pairs
        .iter()
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .filter(|pair| !pair.starts_with('+'))
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| malformed("it is not hexadecimal"))
        })
        .collect()
}

fn check_name(name: &str) -> Result<(), Error> {
    let good = (1..=LONGEST_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if good {
        return Ok(());
    }
    Err(Error::Malformed {
        what: format!("the host name {name:?}"),
        why: format!("it takes 1 to {LONGEST_NAME} letters, digits, '-', '.' and '_'"),
    })
}

fn hosts(name: &str, network: Option<&GuestNetwork>) -> String {
    let own = network.map_or_else(
        || "127.0.1.1".to_owned(),
        |network| network.address.to_string(),
    );
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         {own}\t{name}\n"
    )
}

fn resolv_conf(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// Makes `path` a regular file with `content`, whatever it was (a dangling
/// link into `/run` is common), without following it.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let present = fs::symlink_metadata(path);
    if present.is_ok_and(|metadata| metadata.is_file() && metadata.len() == content.len() as u64)
        && fs::read(path)? == content
    {
        return Ok(());
    }
    let temporary = path.with_extension("microagent");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)?
        .write_all(content)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_dangling_link_becomes_a_file_and_its_target_stays_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let target = folder.path().join("elsewhere");
        symlink(&target, &path).unwrap();
        replace(&path, b"nameserver 10.0.2.3\n").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert!(!target.exists());
        replace(&path, b"again").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"again");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_own_name_points_at_the_network_or_at_the_loopback() {
        assert!(hosts("box", None).ends_with("127.0.1.1\tbox\n"));
        let network = GuestNetwork {
            address: [10, 0, 2, 15].into(),
            prefix: 24,
            gateway: [10, 0, 2, 2].into(),
            ipv6: None,
            dns: vec![[10, 0, 2, 3].into(), "fd00::3".parse().unwrap()],
        };
        assert!(hosts("box", Some(&network)).ends_with("10.0.2.15\tbox\n"));
        assert_eq!(
            resolv_conf(&network.dns),
            "nameserver 10.0.2.3\nnameserver fd00::3\n"
        );
    }

    #[test]
    fn names_cannot_carry_lines() {
        check_name("my-box.local").unwrap();
        for bad in ["", "a b", "a\n1.2.3.4 bank", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn entropy_is_hexadecimal_and_bounded() {
        assert_eq!(decode_hex("00ffA0").unwrap(), [0, 255, 160]);
        assert!(decode_hex("").unwrap().is_empty());
        for bad in ["0", "zz", "+1", "0\u{e9}0", &"00".repeat(MOST_ENTROPY + 1)] {
            assert!(decode_hex(bad).is_err(), "{bad:?}");
        }
    }
}
