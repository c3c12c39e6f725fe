//! One GET to a registry: scheme, TLS, redirects, authorization, and whether a failure may pass.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ureq::http::{Request, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::auth::{Challenge, Credential, Credentials, challenges};
use super::{backoff, read_bounded};
use crate::error::{ImageError, Result, clip};
use crate::reference::Reference;

const MAX_REDIRECTS: usize = 8;
const MAX_TOKEN: u64 = 1 << 20;
const MAX_ERROR: u64 = 64 << 10;
/// How long a registry that may speak plain HTTP is given to show that it speaks TLS.
const PROBE: Duration = Duration::from_secs(5);

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
    pub(super) fn delay_after(&self, failures: u32) -> Duration {
        backoff(self.backoff, failures)
    }

    fn may_be_plain(&self, authority: &str) -> bool {
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

/// Why a request failed.
pub(crate) enum Failure {
    /// It may go well the next time.
    Passing {
        reason: String,
        /// How long the registry asked to wait.
        wait: Option<Duration>,
    },
    /// It will not.
    Final(ImageError),
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing {
            reason: clip(&reason.into()),
            wait: None,
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Final(error)
    }
}

type Attempt<T> = std::result::Result<T, Failure>;

pub(super) struct Transport<'a> {
    agent: Agent,
    options: &'a RegistryOptions,
    credentials: Option<&'a dyn Credentials>,
    /// As in references.
    registry: String,
    image: String,
    repository: String,
    /// Where its API is: differs from `registry` for the default registry only.
    authority: String,
    scheme: OnceLock<&'static str>,
    authorization: Mutex<Authorization>,
}

#[derive(Default)]
struct Authorization {
    header: Option<String>,
    credential: Option<Option<Credential>>,
}

impl<'a> Transport<'a> {
    pub(super) fn new(
        reference: &Reference,
        options: &'a RegistryOptions,
        credentials: Option<&'a dyn Credentials>,
    ) -> Result<Self> {
        let registry = reference.registry();
        let authority = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        Ok(Self {
            agent: agent(registry, options)?,
            options,
            credentials,
            registry: registry.to_owned(),
            image: reference.to_string(),
            repository: reference.repository().to_owned(),
            authority: authority.to_owned(),
            scheme: OnceLock::new(),
            authorization: Mutex::default(),
        })
    }

    pub(super) fn options(&self) -> &'a RegistryOptions {
        self.options
    }

    /// Gets `path` from the registry, from byte `from` on. Any answer that is no redirect and no
    /// challenge is returned, whatever its status.
    pub(super) fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        from: Option<u64>,
    ) -> Attempt<Response<Body>> {
        let scheme = self.scheme()?;
        let url = format!("{scheme}://{}{path}", self.authority);
        let mut challenged = false;
        loop {
            let authorization = self.lock().header.clone();
            let (response, at_home) = self.follow(&url, accept, from, authorization.as_deref())?;
            // A challenge of another host is none of ours: our credentials are not for it.
            if response.status() != StatusCode::UNAUTHORIZED || challenged || !at_home {
                return Ok(response);
            }
            challenged = true;
            self.authorize(&response, authorization.as_deref())?;
        }
    }

    fn follow(
        &self,
        url: &str,
        accept: Option<&str>,
        from: Option<u64>,
        authorization: Option<&str>,
    ) -> Attempt<(Response<Body>, bool)> {
        let home: Uri = url.parse().map_err(|_| self.odd("the URL is malformed"))?;
        let mut uri = home.clone();
        for _ in 0..=MAX_REDIRECTS {
            let at_home = same_origin(&uri, &home);
            let mut request = Request::get(&uri);
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, accept);
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization.filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let request = request
                .body(())
                .map_err(|error| self.odd(&format!("the request is malformed: {error}")))?;
            let response = self
                .agent
                .run(request)
                .map_err(|error| self.failure(error))?;
            if !response.status().is_redirection() {
                return Ok((response, at_home));
            }
            uri = self.redirected(&uri, &response)?;
        }
        Err(self.odd("it redirects too often").into())
    }

    fn redirected(&self, from: &Uri, response: &Response<Body>) -> Attempt<Uri> {
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| self.odd("it redirects to nowhere"))?;
        let target = resolve(from, location).ok_or_else(|| {
            self.odd(&format!(
                "it redirects to `{}`, which is no URL",
                clip(location)
            ))
        })?;
        let authority = target
            .authority()
            .map_or("", |authority| authority.as_str());
        match target.scheme_str() {
            Some("https") => Ok(target),
            Some("http") if self.options.may_be_plain(authority) => Ok(target),
            _ => Err(self
                .odd(&format!(
                    "it redirects to `{}`, which is not HTTPS",
                    clip(authority)
                ))
                .into()),
        }
    }

    /// `https`, or `http` where that is allowed and the registry does not speak TLS.
    fn scheme(&self) -> Attempt<&'static str> {
        if let Some(scheme) = self.scheme.get() {
            return Ok(scheme);
        }
        let scheme = if self.options.may_be_plain(&self.authority) {
            let probe = self
                .agent
                .get(format!("https://{}/v2/", self.authority))
                .config()
                .timeout_global(Some(PROBE))
                .build()
                .call();
            match probe {
                Ok(_) => "https",
                Err(ureq::Error::Timeout(_)) => "http",
                Err(error) => match self.failure(error) {
                    Failure::Final(ImageError::PlainHttp { .. }) => "http",
                    other => return Err(other),
                },
            }
        } else {
            "https"
        };
        Ok(self.scheme.get_or_init(|| scheme))
    }

    /// Answers a challenge, unless another thread did since `used` was sent.
    fn authorize(&self, response: &Response<Body>, used: Option<&str>) -> Attempt<()> {
        let mut authorization = self.lock();
        if authorization.header.as_deref() != used {
            return Ok(());
        }
        let offered: Vec<Challenge> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        if authorization.credential.is_none() {
            let credential = match self.credentials {
                Some(source) => source
                    .credential(&self.registry)
                    .map_err(|reason| self.unauthorized(reason))?,
                None => None,
            };
            authorization.credential = Some(credential);
        }
        let credential = authorization.credential.clone().flatten();
        let bearer = offered
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        authorization.header = match (bearer.or(offered.first()), credential) {
            (_, Some(Credential::Bearer(token))) => Some(format!("Bearer {token}")),
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credential,
            ) => {
                let token = self.token(realm, service.as_deref(), scope.as_deref(), credential)?;
                Some(format!("Bearer {token}"))
            }
            (Some(Challenge::Basic), Some(Credential::Basic { username, password })) => {
                Some(basic(&username, &password))
            }
            (Some(Challenge::Basic), None) => {
                return Err(self.unauthorized("it wants a user name and a password, and none are known; log in to it first.".into()).into());
            }
            (None, _) => {
                return Err(self
                    .unauthorized(
                        "it does not say how to log in (no Basic or Bearer challenge).".into(),
                    )
                    .into());
            }
        };
        Ok(())
    }

    /// Trades credentials, or their absence, for a token (the distribution token protocol).
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        credential: Option<Credential>,
    ) -> Attempt<String> {
        let uri: Uri = realm
            .parse()
            .map_err(|_| self.odd("its token service is no URL"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let plain = uri.scheme_str() == Some("http") && self.options.may_be_plain(authority);
        if authority.is_empty() || !(plain || uri.scheme_str() == Some("https")) {
            return Err(self
                .odd(&format!("its token service `{}` is not HTTPS", clip(realm)))
                .into());
        }
        let mut url = realm.to_owned();
        let mut separator = if url.contains('?') { '&' } else { '?' };
        let default_scope = format!("repository:{}:pull", self.repository);
        for (name, value) in [
            ("service", service),
            ("scope", Some(scope.unwrap_or(&default_scope))),
        ] {
            if let Some(value) = value {
                url.push(separator);
                url.push_str(name);
                url.push('=');
                percent_encode(value, &mut url);
                separator = '&';
            }
        }
        let had_credential = credential.is_some();
        let header = match credential {
            Some(Credential::Basic { username, password }) => Some(basic(&username, &password)),
            _ => None,
        };
        let (response, _) = self.follow(&url, Some("application/json"), None, header.as_deref())?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.unauthorized(denied(had_credential)).into());
            }
            _ => return Err(self.refusal(response, "fetching a token")),
        }
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = read_bounded(response, MAX_TOKEN)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| self.odd("its token service's answer cannot be read"))?;
        token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| self.odd("its token service gave no token").into())
    }

    /// Turns an answer nobody wanted into an error, with the registry's own words.
    pub(super) fn refusal(&self, response: Response<Body>, doing: &str) -> Failure {
        let status = response.status();
        let wait = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
            .map(|seconds| Duration::from_secs(seconds.min(60)));
        let says = read_bounded(response, MAX_ERROR)
            .ok()
            .and_then(|body| words(&body));
        let reason = match &says {
            Some(says) => format!("it answered {status}: {says}"),
            None => format!("it answered {status}"),
        };
        match status {
            StatusCode::NOT_FOUND if doing.contains("manifest") => {
                Failure::Final(ImageError::NotFound {
                    image: self.image.clone(),
                    registry: self.registry.clone(),
                })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let known = matches!(self.lock().credential, Some(Some(_)));
                Failure::Final(self.unauthorized(denied(known)))
            }
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Failure::Passing { reason, wait },
            _ => Failure::Final(ImageError::Registry {
                registry: self.registry.clone(),
                doing: doing.to_owned(),
                reason,
            }),
        }
    }

    fn failure(&self, error: ureq::Error) -> Failure {
        if let Some(tls) = tls_error(&error) {
            return Failure::Final(match tls {
                // What came was no TLS record: plain HTTP, most likely.
                rustls::Error::InvalidMessage(_) => ImageError::PlainHttp {
                    registry: self.registry.clone(),
                },
                tls => ImageError::Tls {
                    registry: self.registry.clone(),
                    reason: clip(&tls.to_string()),
                },
            });
        }
        match error {
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_) => Failure::passing(error.to_string()),
            // A server that closes before it answers looks like this.
            ureq::Error::Protocol(_) => Failure::passing(error.to_string()),
            other => Failure::Final(self.odd(&clip(&other.to_string()))),
        }
    }

    fn odd(&self, reason: &str) -> ImageError {
        ImageError::Registry {
            registry: self.registry.clone(),
            doing: format!("asked for {}", self.image),
            reason: reason.to_owned(),
        }
    }

    fn unauthorized(&self, reason: String) -> ImageError {
        ImageError::Unauthorized {
            image: self.image.clone(),
            registry: self.registry.clone(),
            reason,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Authorization> {
        // A thread that panicked here left a whole value: each field is set in one step.
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn denied(with_credential: bool) -> String {
    if with_credential {
        "the credentials were not accepted, or do not allow this; log in again.".into()
    } else {
        "the image does not exist there, or needs a login; check the name, or log in first.".into()
    }
}

fn agent(registry: &str, options: &RegistryOptions) -> Result<Agent> {
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

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{username}:{password}")))
}

/// The TLS library's own error, however deep it is wrapped.
fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
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

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

/// Resolves a `Location` against the URL it came from (the cases of RFC 3986 §5 that servers use).
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let scheme = from.scheme_str()?;
    let authority = from.authority()?.as_str();
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    // `user:password@host` would be sent as credentials nobody asked for.
    let authority = uri.authority()?.as_str();
    (!authority.contains('@') && uri.scheme().is_some()).then_some(uri)
}

fn percent_encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The messages of a registry's error document, for people.
fn words(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<Fault>,
    }
    #[derive(serde::Deserialize)]
    struct Fault {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let fault = answer.errors.into_iter().next()?;
    let text = if fault.message.is_empty() {
        fault.code
    } else {
        fault.message
    };
    (!text.is_empty()).then(|| clip(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_named_hosts_may_be_plain() {
        let options = RegistryOptions {
            insecure_registries: vec!["lab:5000".into(), "box".into()],
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
        ] {
            assert!(options.may_be_plain(good), "{good}");
        }
        for bad in [
            "lab",
            "lab:5001",
            "localhost.example",
            "127.0.0.1.example",
            "example",
            "[::2]:5",
        ] {
            assert!(!options.may_be_plain(bad), "{bad}");
        }
    }

    #[test]
    fn locations_resolve() {
        let from: Uri = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
        for (location, expect) in [
            (
                "https://cdn.example/b?c=d#e",
                Some("https://cdn.example/b?c=d"),
            ),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b", Some("https://r.example:5000/b")),
            ("b", Some("https://r.example:5000/v2/a/blobs/b")),
            ("https://u:p@evil.example/", None),
        ] {
            assert_eq!(
                resolve(&from, location)
                    .map(|uri| uri.to_string())
                    .as_deref(),
                expect,
                "{location}"
            );
        }
        let home: Uri = "https://r.example/".parse().unwrap();
        assert!(same_origin(
            &"https://r.example:443/x".parse().unwrap(),
            &home
        ));
        assert!(!same_origin(
            &"https://r.example:444/x".parse().unwrap(),
            &home
        ));
        assert!(!same_origin(&"http://r.example/x".parse().unwrap(), &home));
    }

    #[test]
    fn waits_double_and_are_bounded() {
        let options = RegistryOptions::default();
        assert_eq!(options.delay_after(1), Duration::from_millis(500));
        assert_eq!(options.delay_after(3), Duration::from_secs(2));
        assert_eq!(options.delay_after(40), Duration::from_secs(20));
    }
}
