//! Which requests go through a proxy: the rules that curl, Go and Docker share.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

use super::options::{host_of, is_loopback};

/// Proxies by the scheme of what is asked for, and the hosts that are asked directly. Loopback always is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    http: Option<String>,
    https: Option<String>,
    direct: Vec<Direct>,
}

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    Everything,
    Network(IpAddr, u8),
    /// A host and all below it, or only what is below it.
    Domain {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
}

impl ProxyOptions {
    /// From the values that the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` have by convention:
    /// `[http[s]://][user:password@]host[:port]`, and a list of hosts, `.domains`, addresses,
    /// networks and `*`.
    #[must_use]
    pub fn new(http: Option<String>, https: Option<String>, no_proxy: &str) -> Self {
        let given = |value: Option<String>| value.filter(|value| !value.trim().is_empty());
        Self {
            http: given(http),
            https: given(https),
            direct: no_proxy
                .split([',', ' '])
                .filter_map(Direct::parse)
                .collect(),
        }
    }

    /// The proxy for `uri`.
    pub(super) fn choose(&self, uri: &Uri) -> Option<&str> {
        let proxy = match uri.scheme_str() {
            Some("https") => self.https.as_deref(),
            _ => self.http.as_deref(),
        }?;
        let host = host_of(uri.authority()?.as_str()).to_ascii_lowercase();
        let port = uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            _ => Some(80),
        });
        let direct = is_loopback(&host) || self.direct.iter().any(|entry| entry.holds(&host, port));
        (!direct).then_some(proxy)
    }
}

impl fmt::Debug for ProxyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyOptions")
            .field("http", &self.http.as_deref().map(shown))
            .field("https", &self.https.as_deref().map(shown))
            .field("direct", &self.direct)
            .finish()
    }
}

/// A proxy's address without the user and password that may be in it.
pub(super) fn shown(proxy: &str) -> &str {
    // A password may have any character in it, if wrongly: only what follows the last `@` is no part of it.
    let rest = parts(proxy).1;
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// Whether a user or a password has a character that ends them, where it is not written as `%2F`, `%3F` or `%23`.
pub(super) fn is_cut_short(proxy: &str) -> bool {
    parts(proxy).0.contains(['/', '?', '#'])
}

/// User and password, and what follows them.
fn parts(proxy: &str) -> (&str, &str) {
    let rest = proxy.split_once("://").map_or(proxy, |(_, rest)| rest);
    rest.rsplit_once('@').unwrap_or(("", rest))
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry.is_empty() {
            return None;
        }
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            return Some(Self::Network(address.parse().ok()?, bits.parse().ok()?));
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Network(address, u8::MAX));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
        Some(Self::Domain {
            name: below.unwrap_or(name).to_owned(),
            only_below: below.is_some(),
            port,
        })
    }

    fn holds(&self, host: &str, port: Option<u16>) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network, bits) => host
                .parse::<IpAddr>()
                .is_ok_and(|address| in_network(address, *network, *bits)),
            Self::Domain {
                name,
                only_below,
                port: wanted,
            } => {
                let named = match host.strip_suffix(name.as_str()) {
                    Some("") => !only_below,
                    Some(rest) => rest.ends_with('.'),
                    None => false,
                };
                named && wanted.is_none_or(|wanted| port == Some(wanted))
            }
        }
    }
}

/// Whether the first `bits` bits of both addresses are the same.
fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let bits = u32::from(bits).min(width);
    bits == 0 || (a ^ b) >> (width - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chosen(options: &ProxyOptions, uri: &str) -> Option<String> {
        options.choose(&uri.parse().unwrap()).map(str::to_owned)
    }

    #[test]
    fn the_scheme_chooses_and_the_list_excepts() {
        let options = ProxyOptions::new(
            Some("http://plain:1".into()),
            Some("http://u:secret@tls:2".into()),
            " corp.example, .only.example ,10.0.0.0/8,192.168.1.7,[2001:db8::1],one.example:5000,, bad/x",
        );
        for (uri, expect) in [
            ("http://r.example/", Some("http://plain:1")),
            ("https://r.example/", Some("http://u:secret@tls:2")),
            ("https://corp.example/", None),
            ("https://a.CORP.example/", None),
            ("https://xcorp.example/", Some("http://u:secret@tls:2")),
            ("http://only.example/", Some("http://plain:1")),
            ("http://a.only.example/", None),
            ("https://10.200.3.4:5000/", None),
            ("https://11.0.0.1/", Some("http://u:secret@tls:2")),
            ("https://192.168.1.7/", None),
            ("https://[2001:db8::1]:5/", None),
            ("https://one.example:5000/", None),
            ("https://one.example/", Some("http://u:secret@tls:2")),
            ("http://localhost:5000/", None),
            ("http://127.0.0.1/", None),
            ("http://[::1]:5000/", None),
        ] {
            assert_eq!(chosen(&options, uri).as_deref(), expect, "{uri}");
        }
        assert!(!format!("{options:?}").contains("secret"));
        for odd in ["/", "?", "#", "@", "/@"] {
            let given = format!("http://u:se{odd}cret@tls:2/");
            assert_eq!(shown(&given), "tls:2");
            assert_eq!(is_cut_short(&given), odd != "@", "{given}");
        }
        assert_eq!(shown("u:secret@tls:2"), "tls:2");
        assert!(!is_cut_short("http://tls:2/x"));
        let all = ProxyOptions::new(Some("p".into()), None, "*");
        assert_eq!(chosen(&all, "http://r.example/"), None);
    }

    proptest! {
        #[test]
        fn any_list_can_be_read(list in ".{0,80}", host in "[a-z0-9.]{1,20}") {
            let options = ProxyOptions::new(Some("p".into()), Some("p".into()), &list);
            if let Ok(uri) = format!("https://{host}/").parse::<Uri>() {
                let _ = options.choose(&uri);
            }
        }
    }
}
