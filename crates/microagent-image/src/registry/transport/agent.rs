//! HTTP clients: one for each way there is to a host, with its certificates, proxy and time limits.

use std::sync::{Arc, Mutex, PoisonError};

use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use super::super::options::{ClientCertificate, HostOptions, RegistryOptions};
use super::super::proxy;
use crate::error::{ImageError, Result, clip};

/// A client, and the proxy it goes through (its address, without credentials).
#[derive(Clone)]
pub(super) struct Way {
    pub(super) agent: Agent,
    pub(super) proxy: Option<String>,
}

/// The clients that were needed so far. Hosts that nothing is particular to share one.
pub(super) struct Agents<'a> {
    options: &'a RegistryOptions,
    made: Mutex<Vec<(Key, Way)>>,
}

/// What makes one way differ from another.
#[derive(PartialEq, Eq)]
struct Key {
    host: Option<String>,
    proxy: Option<String>,
}

impl<'a> Agents<'a> {
    pub(super) fn new(options: &'a RegistryOptions) -> Self {
        Self {
            options,
            made: Mutex::default(),
        }
    }

    /// A way to `uri` on which no certificate is believed: whoever speaks TLS there is found out without reading
    /// the system's hundreds of them.
    pub(super) fn distrusting(&self, uri: &Uri) -> Result<Way> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let proxy = self.options.proxy.choose(uri);
        Ok(Way {
            agent: agent(authority, self.options, &Trust::Nobody, proxy)?,
            proxy: proxy.map(|proxy| proxy::shown(proxy).to_owned()),
        })
    }

    /// The way to `uri`.
    pub(super) fn to(&self, uri: &Uri) -> Result<Way> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = self
            .options
            .host(authority)
            .filter(|(_, host)| !host.roots.is_empty() || host.client.is_some());
        let proxy = self.options.proxy.choose(uri);
        let key = Key {
            host: host.map(|(name, _)| name.to_owned()),
            proxy: proxy.map(str::to_owned),
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, way)) = made.iter().find(|(other, _)| *other == key) {
            return Ok(way.clone());
        }
        let way = Way {
            agent: agent(
                authority,
                self.options,
                &Trust::Authorities(host.map(|(_, host)| host)),
                proxy,
            )?,
            proxy: proxy.map(|proxy| proxy::shown(proxy).to_owned()),
        };
        made.push((key, way.clone()));
        Ok(way)
    }
}

/// Whom a client believes.
enum Trust<'o> {
    /// Who shows a certificate of the system's authorities, or of those that were named.
    Authorities(Option<&'o HostOptions>),
    /// Nobody.
    Nobody,
}

fn agent(
    authority: &str,
    options: &RegistryOptions,
    trust: &Trust<'_>,
    proxy: Option<&str>,
) -> Result<Agent> {
    let fault = |reason: String| ImageError::Settings {
        registry: authority.to_owned(),
        reason,
    };
    let proxy = proxy
        .map(|given| {
            if proxy::is_cut_short(given) {
                return Err(fault(format!(
                    "the user or the password for the proxy `{}` has a `/`, `?` or `#` in it, which is written %2F, %3F or %23 there",
                    clip(proxy::shown(given))
                )));
            }
            ureq::Proxy::new(given)
                .ok()
                .filter(|proxy| {
                    use ureq::ProxyProtocol::{Http, Https};
                    matches!(proxy.protocol(), Http | Https)
                })
                .ok_or_else(|| {
                    fault(format!(
                        "the proxy `{}` is not of the form http://host:port",
                        clip(proxy::shown(given))
                    ))
                })
        })
        .transpose()?;
    let (roots, host) = match trust {
        Trust::Authorities(host) => (roots(options, *host).map_err(fault)?, *host),
        Trust::Nobody => (RootCerts::from(Vec::<Certificate<'static>>::new()), None),
    };
    let client = host
        .and_then(|host| host.client.as_ref())
        .map(client_certificate)
        .transpose()
        .map_err(fault)?;
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(roots)
        .client_cert(client)
        .build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        // Set even when there is none: the default would read the environment.
        .proxy(proxy)
        .http_status_as_error(false)
        // Redirects are followed here, where the rules on hosts and schemes are.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("microagent/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(options.connect_timeout))
        .timeout_recv_response(Some(options.stall_timeout.saturating_mul(2)))
        .timeout_per_read(Some(options.stall_timeout))
        .timeout_per_write(Some(options.stall_timeout))
        .max_idle_connections_per_host(options.parallel.max(1))
        .build()
        .new_agent())
}

fn roots(
    options: &RegistryOptions,
    host: Option<&HostOptions>,
) -> std::result::Result<RootCerts, String> {
    let mut extra = options
        .extra_roots
        .iter()
        .chain(host.into_iter().flat_map(|host| &host.roots))
        .peekable();
    if extra.peek().is_none() {
        return Ok(RootCerts::PlatformVerifier);
    }
    let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    for pem in extra {
        let found = certificates(pem).map_err(|why| format!("a CA certificate {why}"))?;
        roots.extend(found);
    }
    Ok(RootCerts::from(roots))
}

fn certificates(pem: &[u8]) -> std::result::Result<Vec<Certificate<'static>>, String> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("cannot be read: {}", clip(&error.to_string()))),
        }
    }
    if found.is_empty() {
        return Err("is not in PEM form (-----BEGIN CERTIFICATE-----)".into());
    }
    Ok(found)
}

fn client_certificate(client: &ClientCertificate) -> std::result::Result<ClientCert, String> {
    let chain =
        certificates(&client.chain).map_err(|why| format!("the client certificate {why}"))?;
    // What the reader says of a bad key could hold a part of it.
    let key = PrivateKey::from_pem(client.key.expose().as_bytes())
        .map_err(|_| "the client certificate's key is not a private key in PEM form".to_owned())?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
