//! How registries are reached, and which of them without TLS.

use std::net::IpAddr;
use std::time::Duration;

use super::backoff;

/// How registries are reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Hosts (`host` or `host:port`) that may be spoken to in plain HTTP where they do not speak TLS.
    /// Loopback hosts always may.
    pub insecure_registries: Vec<String>,
    /// Certificates of private authorities, PEM, accepted besides those of the operating system.
    pub extra_roots: Vec<Vec<u8>>,
    /// A proxy for all requests: `http://host:port`.
    pub proxy: Option<String>,
    /// How often a request that fails in a way that may pass is made, the first time included.
    pub attempts: u32,
    /// The wait after the first failure; it doubles each time, up to 20 s.
    pub backoff: Duration,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long a registry may be silent before the connection counts as lost.
    pub stall_timeout: Duration,
    /// How many layers are downloaded at once.
    pub parallel: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            extra_roots: Vec::new(),
            proxy: None,
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
        is_loopback(host_of(authority))
            || self
                .insecure_registries
                .iter()
                .any(|named| named == authority || named == host_of(authority))
    }
}

fn host_of(authority: &str) -> &str {
    match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => authority
            .split_once(':')
            .map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
