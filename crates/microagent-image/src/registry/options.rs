//! How registries are reached: which without TLS, which with what certificates, which through others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::credential::Secret;
use super::proxy::ProxyOptions;
use super::retry::backoff;
use super::scope::RegistryScope;
use crate::error::{ImageError, Result};

/// How registries are reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Hosts (`host` or `host:port`) that may be spoken to in plain HTTP where they do not speak TLS.
    /// Loopback hosts always may.
    pub insecure_registries: Vec<String>,
    /// Certificates of private authorities, PEM, accepted besides those of the operating system.
    pub extra_roots: Vec<Vec<u8>>,
    /// What is particular to some hosts, by `host` (any port) or `host:port`.
    pub hosts: BTreeMap<String, HostOptions>,
    /// Which requests go through a proxy.
    pub proxy: ProxyOptions,
    /// How often a request that fails in a way that may pass is made, the first time included.
    pub attempts: u32,
    /// The wait after the first failure; it doubles each time, up to 20 s.
    pub backoff: Duration,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long a registry may be silent before the connection counts as lost, and over what time it may send less
    /// than 1 KiB a second.
    pub stall_timeout: Duration,
    /// How many layers are downloaded at once.
    pub parallel: usize,
}

/// What is particular to one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostOptions {
    /// Where its images are looked for first, in this order: `mirror.example` or
    /// `mirror.example/docker`, below which the same repositories are.
    pub mirrors: Vec<RegistryScope>,
    /// Nothing is pulled from it.
    pub blocked: bool,
    /// It may be spoken to in plain HTTP where it does not speak TLS.
    pub insecure: bool,
    /// Certificates of private authorities, PEM, accepted for this host besides those of the
    /// operating system.
    pub roots: Vec<Vec<u8>>,
    /// The certificate by which this host knows us.
    pub client: Option<ClientCertificate>,
}

/// A certificate to show, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and what is between it and its authority, PEM.
    pub chain: Vec<u8>,
    /// The private key, PEM.
    pub key: Secret,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            extra_roots: Vec::new(),
            hosts: BTreeMap::new(),
            proxy: ProxyOptions::default(),
            attempts: 4,
            backoff: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            parallel: 4,
        }
    }
}

impl RegistryOptions {
    /// The wait before the next attempt.
    pub(super) fn delay_after(&self, failures: u32) -> Duration {
        backoff(self.backoff, failures)
    }

    /// Whether `authority` may be spoken to in plain HTTP.
    pub(super) fn may_be_plain(&self, authority: &str) -> bool {
        let authority = written_one_way(authority);
        let host = host_of(&authority);
        is_loopback(host)
            || self.host(&authority).is_some_and(|(_, host)| host.insecure)
            || self.insecure_registries.iter().any(|named| {
                let named = written_one_way(named);
                [&authority, without_port(&authority), host].contains(&named.as_str())
            })
    }

    /// Where the repository `origin` is looked for first.
    pub(crate) fn mirrors_of(&self, origin: &RegistryScope) -> Vec<RegistryScope> {
        let mirrors = self.host(origin.registry()).map(|(_, host)| &host.mirrors);
        mirrors
            .into_iter()
            .flatten()
            .map(|mirror| mirror.join(origin.path().unwrap_or_default()))
            .collect()
    }

    /// A mirror that does not answer is not asked for long: there is another place.
    pub(crate) fn for_mirror(&self) -> Self {
        Self {
            attempts: self.attempts.min(2),
            ..self.clone()
        }
    }

    /// Whether `image`, or a part of it, may be asked for at `authority` at all.
    pub(crate) fn refuse_blocked(&self, authority: &str, image: &str) -> Result<()> {
        // Who asks without a port, asks there.
        let usual = match without_port(authority) == authority {
            true => self
                .hosts
                .get(&written_one_way(&format!("{authority}:443"))),
            false => None,
        };
        let own = self.host(authority).map(|(_, host)| host);
        match [own, usual].into_iter().flatten().any(|host| host.blocked) {
            true => Err(ImageError::Blocked {
                image: image.to_owned(),
                registry: authority.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// What is particular to `authority`, and the name it is kept under.
    pub(crate) fn host(&self, authority: &str) -> Option<(&str, &HostOptions)> {
        let authority = written_one_way(authority);
        let authority = match authority.as_str() {
            "registry-1.docker.io" => "docker.io",
            other => other,
        };
        self.hosts
            .get_key_value(authority)
            .or_else(|| self.hosts.get_key_value(without_port(authority)))
            .map(|(name, host)| (name.as_str(), host))
    }
}

/// One host has one name: in small letters, and without the dot that may end a full name. A redirect may write
/// it otherwise.
fn written_one_way(authority: &str) -> String {
    let lower = authority.to_ascii_lowercase();
    let host = without_port(&lower);
    format!("{}{}", host.trim_end_matches('.'), &lower[host.len()..])
}

/// `host` or `[address]`, as both are written.
fn without_port(authority: &str) -> &str {
    match authority.rfind(']') {
        Some(end) => &authority[..=end],
        None => authority
            .split_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

/// The host of `host`, `host:port`, `[address]` or `[address]:port`.
pub(super) fn host_of(authority: &str) -> &str {
    let host = without_port(authority);
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    address.unwrap_or(host)
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_named_hosts_may_be_plain() {
        let insecure = HostOptions {
            insecure: true,
            ..HostOptions::default()
        };
        let options = RegistryOptions {
            insecure_registries: vec!["lab:5000".into(), "Box".into(), "[fd00::1]".into()],
            hosts: BTreeMap::from([("shed:5000".to_owned(), insecure)]),
            ..RegistryOptions::default()
        };
        for good in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5",
            "lab:5000",
            "box:77",
            "shed:5000",
            "SHED.:5000",
            "LOCALHOST",
            "[fd00::1]:5",
        ] {
            assert!(options.may_be_plain(good), "{good}");
        }
        for bad in [
            "lab",
            "lab:5001",
            "shed",
            "localhost.example",
            "127.0.0.1.example",
            "example",
            "[::2]:5",
        ] {
            assert!(!options.may_be_plain(bad), "{bad}");
        }
    }

    #[test]
    fn a_port_is_more_particular_than_its_host() {
        let blocked = |blocked| HostOptions {
            blocked,
            ..HostOptions::default()
        };
        let options = RegistryOptions {
            hosts: BTreeMap::from([
                ("r.example".to_owned(), blocked(true)),
                ("r.example:5000".to_owned(), blocked(false)),
                ("docker.io".to_owned(), blocked(true)),
                ("[fd00::1]".to_owned(), blocked(true)),
            ]),
            ..RegistryOptions::default()
        };
        for (authority, expect) in [
            ("r.example", Some(true)),
            ("r.example:1", Some(true)),
            ("r.example:5000", Some(false)),
            ("registry-1.docker.io", Some(true)),
            ("R.EXAMPLE:1", Some(true)),
            ("r.example.:1", Some(true)),
            ("R.example.:5000", Some(false)),
            ("[fd00::1]", Some(true)),
            ("[FD00::1]:5000", Some(true)),
            ("[fd00::2]:5000", None),
            ("other.example", None),
        ] {
            let found = options.host(authority).map(|(_, host)| host.blocked);
            assert_eq!(found, expect, "{authority}");
        }
        let named = RegistryOptions {
            hosts: BTreeMap::from([("r.example:443".to_owned(), blocked(true))]),
            ..RegistryOptions::default()
        };
        for (authority, expect) in [
            ("r.example", true),
            ("R.example:443", true),
            ("r.example:5000", false),
        ] {
            let refused = named.refuse_blocked(authority, "an image").is_err();
            assert_eq!(refused, expect, "{authority}");
        }
    }
}
