//! The HTTP client: its certificates, proxy and time limits, and what its TLS errors are.

use std::io;
use std::sync::Arc;

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::super::options::RegistryOptions;
use crate::error::{ImageError, Result};

pub(super) fn agent(registry: &str, options: &RegistryOptions) -> Result<Agent> {
    let fault = |reason: String| ImageError::Registry {
        registry: registry.to_owned(),
        doing: "prepared".into(),
        reason,
    };
    let roots = if options.extra_roots.is_empty() {
        RootCerts::PlatformVerifier
    } else {
        let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .collect();
        for pem in &options.extra_roots {
            for item in ureq::tls::parse_pem(pem) {
                match item {
                    Ok(ureq::tls::PemItem::Certificate(certificate)) => roots.push(certificate),
                    Ok(_) => {}
                    Err(error) => {
                        return Err(fault(format!(
                            "an extra certificate cannot be read: {error}"
                        )));
                    }
                }
            }
        }
        RootCerts::from(roots)
    };
    let proxy = options
        .proxy
        .as_deref()
        .map(ureq::Proxy::new)
        .transpose()
        .map_err(|error| fault(format!("the proxy's address cannot be used: {error}")))?;
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(roots)
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
        .max_idle_connections_per_host(options.parallel.max(1))
        .build()
        .new_agent())
}

/// The TLS library's own error, however deep it is wrapped.
pub(super) fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => inner_tls(error),
        _ => None,
    }
}

fn inner_tls(error: &io::Error) -> Option<&rustls::Error> {
    let mut inner: &(dyn std::error::Error + 'static) = error.get_ref()?;
    loop {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        if let Some(error) = inner.downcast_ref::<ureq::Error>() {
            return tls_error(error);
        }
        inner = match inner.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref()?,
            None => inner.source()?,
        };
    }
}
