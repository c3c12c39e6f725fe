//! One GET to a registry: scheme, TLS, redirects, authorization, and whether a failure may pass.

mod agent;
mod login;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::http::{Request, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use self::agent::{agent, tls_error};
use super::auth::{Credential, Credentials};
use super::options::RegistryOptions;
use super::read_bounded;
use crate::error::{ImageError, Result, clip};
use crate::reference::Reference;

const MAX_REDIRECTS: usize = 8;
const MAX_ERROR: u64 = 64 << 10;
/// How long a registry that may speak plain HTTP is given to show that it speaks TLS.
const PROBE: Duration = Duration::from_secs(5);

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
mod tests;
