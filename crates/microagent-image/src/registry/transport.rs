//! One request to a registry: scheme, TLS, redirects, authorization, and whether a failure may pass.

mod agent;
mod failure;
mod login;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ureq::Body;
use ureq::http::{Method, Request, Response, StatusCode, Uri, header};

use self::agent::Agents;
pub(crate) use self::failure::{Failure, Passing, PassingKind};
use super::credential::{Credential, Credentials, Secret};
use super::options::RegistryOptions;
use super::scope::RegistryScope;
use crate::error::{ImageError, Result, clip};
use crate::event::ImageEvent;

const MAX_REDIRECTS: usize = 8;
/// How long a registry that may speak plain HTTP is given to show that it speaks TLS.
const PROBE: Duration = Duration::from_secs(5);

type Attempt<T> = std::result::Result<T, Failure>;

/// What is asked for, besides the path.
#[derive(Clone, Copy, Default)]
pub(super) struct Ask<'r> {
    pub(super) accept: Option<&'r str>,
    /// From this byte on.
    pub(super) from: Option<u64>,
    /// The headers only.
    pub(super) head: bool,
}

pub(super) struct Transport<'a> {
    agents: Agents<'a>,
    options: &'a RegistryOptions,
    credentials: Option<&'a dyn Credentials>,
    events: &'a (dyn Fn(ImageEvent) + Sync),
    /// The repository, or the whole registry.
    scope: RegistryScope,
    /// What is asked for, in messages.
    what: String,
    /// Where its API is: differs from the registry's name for the default registry only.
    authority: String,
    scheme: OnceLock<&'static str>,
    authorization: Mutex<Authorization>,
    /// Whose turn it is to answer a challenge.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Authorization {
    header: Option<Secret>,
    /// What the caller had, once asked.
    credential: Option<Option<Credential>>,
    /// Why the caller had none.
    fault: Option<String>,
}

impl<'a> Transport<'a> {
    pub(super) fn new(
        scope: RegistryScope,
        what: String,
        options: &'a RegistryOptions,
        credentials: Option<&'a dyn Credentials>,
        events: &'a (dyn Fn(ImageEvent) + Sync),
    ) -> Result<Self> {
        let registry = scope.registry();
        options.refuse_blocked(registry, &what)?;
        let authority = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        Ok(Self {
            agents: Agents::new(options),
            options,
            credentials,
            events,
            authority: authority.to_owned(),
            scope,
            what,
            scheme: OnceLock::new(),
            authorization: Mutex::default(),
            turn: Mutex::default(),
        })
    }

    pub(super) fn options(&self) -> &'a RegistryOptions {
        self.options
    }

    /// As in references.
    pub(super) fn registry(&self) -> &str {
        self.scope.registry()
    }

    pub(super) fn tell(&self, event: ImageEvent) {
        (self.events)(event);
    }

    /// Whether the registry wanted to know who asks, and was told.
    pub(super) fn has_proved_itself(&self) -> bool {
        self.lock().header.is_some()
    }

    /// Gets `path` from the registry. Any answer that is no redirect and no challenge is returned,
    /// whatever its status.
    pub(super) fn get(&self, path: &str, ask: Ask<'_>) -> Attempt<Response<Body>> {
        let scheme = self.scheme()?;
        let url = format!("{scheme}://{}{path}", self.authority);
        let mut challenged = false;
        loop {
            let authorization = self.lock().header.clone();
            let (response, at_home) = self.follow(&url, ask, authorization.as_ref())?;
            // A challenge of another host is none of ours: our credentials are not for it.
            if response.status() != StatusCode::UNAUTHORIZED || challenged || !at_home {
                return Ok(response);
            }
            challenged = true;
            self.authorize(&response, authorization.as_ref())?;
        }
    }

    /// Gets a part of the image from a place that is not the registry's, and is told nothing of us.
    pub(super) fn get_elsewhere(&self, url: &str, ask: Ask<'_>) -> Attempt<Response<Body>> {
        let target = url.parse().ok().filter(is_bare);
        let target = target.ok_or_else(|| self.odd("it names a place that is no URL"))?;
        self.permitted(&target, "names a place at")?;
        Ok(self.follow(url, ask, None)?.0)
    }

    /// Asks `url` and wherever it redirects to; only the first origin ever sees `authorization`.
    fn follow(
        &self,
        url: &str,
        ask: Ask<'_>,
        authorization: Option<&Secret>,
    ) -> Attempt<(Response<Body>, bool)> {
        let home: Uri = url.parse().map_err(|_| self.odd("the URL is malformed"))?;
        let mut uri = home.clone();
        for _ in 0..=MAX_REDIRECTS {
            let at_home = same_origin(&uri, &home);
            let method = if ask.head { Method::HEAD } else { Method::GET };
            let mut request = Request::builder().method(method).uri(&uri);
            if let Some(accept) = ask.accept {
                request = request.header(header::ACCEPT, accept);
            }
            // No `If-Range`: the content is named by its digest, so it is that or it is refused.
            if let Some(from) = ask.from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization.filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, authorization.expose());
            }
            let request = request
                .body(())
                .map_err(|error| self.odd(&format!("the request is malformed: {error}")))?;
            let response = self.send(&uri, |agent| agent.run(request))?;
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
        // What it says is not repeated: it may hold a password or a signature.
        let target = resolve(from, location)
            .ok_or_else(|| self.odd("it redirects to what is no URL, or one with a password"))?;
        self.permitted(&target, "redirects to")?;
        Ok(target)
    }

    /// Whether anything may be asked of `target`, where a registry sends us.
    fn permitted(&self, target: &Uri, how: &str) -> Attempt<()> {
        let authority = target
            .authority()
            .map_or("", |authority| authority.as_str());
        self.options.refuse_blocked(authority, &self.what)?;
        match target.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.options.may_be_plain(authority) => Ok(()),
            _ => Err(self
                .odd(&format!(
                    "it {how} `{}`, which is not HTTPS",
                    clip(authority)
                ))
                .into()),
        }
    }

    /// Sends a request by the way there is to `uri`.
    fn send(
        &self,
        uri: &Uri,
        request: impl FnOnce(&ureq::Agent) -> std::result::Result<Response<Body>, ureq::Error>,
    ) -> Attempt<Response<Body>> {
        let way = self.agents.to(uri)?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        request(&way.agent).map_err(|error| self.failure(&error, authority, way.proxy.as_deref()))
    }

    /// `https`, or `http` where that is allowed and the registry does not speak TLS.
    fn scheme(&self) -> Attempt<&'static str> {
        if let Some(scheme) = self.scheme.get() {
            return Ok(scheme);
        }
        let scheme = if self.options.may_be_plain(&self.authority) {
            self.probe()?
        } else {
            "https"
        };
        Ok(self.scheme.get_or_init(|| scheme))
    }

    fn probe(&self) -> Attempt<&'static str> {
        let uri: Uri = format!("https://{}/v2/", self.authority)
            .parse()
            .map_err(|_| self.odd("the URL is malformed"))?;
        let mut silent = false;
        let probe = self.send(&uri, |agent| {
            let answer = agent
                .get(&uri)
                .config()
                .timeout_global(Some(PROBE))
                .build()
                .call();
            silent = matches!(answer, Err(ureq::Error::Timeout(_)));
            answer
        });
        match probe {
            Ok(_) => Ok("https"),
            Err(Failure::Final(ImageError::PlainHttp { .. })) => Ok("http"),
            Err(_) if silent => Ok("http"),
            Err(other) => Err(other),
        }
    }

    fn odd(&self, reason: &str) -> ImageError {
        ImageError::Registry {
            registry: self.registry().to_owned(),
            doing: format!("asked for {}", self.what),
            reason: reason.to_owned(),
        }
    }

    fn unauthorized(&self, reason: String) -> ImageError {
        ImageError::Unauthorized {
            image: self.what.clone(),
            registry: self.registry().to_owned(),
            reason,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Authorization> {
        // A thread that panicked here left a whole value: each field is set in one step.
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
    text.parse().ok().filter(is_bare)
}

/// Whether it is whole, and has no `user:password@`, which would be sent as credentials nobody asked for.
fn is_bare(uri: &Uri) -> bool {
    let authority = uri.authority().map(ureq::http::uri::Authority::as_str);
    uri.scheme().is_some() && authority.is_some_and(|authority| !authority.contains('@'))
}

#[cfg(test)]
mod tests;
