//! One request to a registry: scheme, TLS, redirects, authorization, and whether a failure may pass.

mod agent;
mod body;
mod failure;
mod login;

use std::io::Read;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ureq::Body;
use ureq::http::{Method, Request, Response, StatusCode, Uri, header};

use self::agent::{Agents, Way};
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
    pub(super) verb: Verb,
    pub(super) accept: Option<&'r str>,
    /// From this byte on.
    pub(super) from: Option<u64>,
    /// What is sent.
    pub(super) sent: Option<Sent<'r>>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verb {
    #[default]
    Get,
    /// The headers only.
    Head,
    Post,
    Patch,
    Put,
}

/// The body of a request. It is opened anew for each attempt.
#[derive(Clone, Copy)]
pub(super) struct Sent<'r> {
    pub(super) content_type: &'r str,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Where it begins in what is uploaded, unless it is all of it.
    pub(super) at: Option<u64>,
    pub(super) open: &'r dyn Fn() -> Result<Box<dyn Read + 'r>>,
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
    /// Whether content is sent there, too; and the repository of the same registry it may come from.
    pushing: Option<Option<String>>,
    /// Where its API is: differs from the registry's name for the default registry only.
    authority: String,
    scheme: OnceLock<&'static str>,
    authorization: Mutex<Authorization>,
    /// Whose turn it is to answer a challenge.
    turn: Mutex<()>,
}

/// The registry's own origin.
struct Home(Uri);

impl Home {
    fn with_path(&self, path: &str) -> String {
        format!("{}{}", self.0, path.trim_start_matches('/'))
    }
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
            pushing: None,
            scheme: OnceLock::new(),
            authorization: Mutex::default(),
            turn: Mutex::default(),
        })
    }

    /// The same for whoever sends content there; some of it may be in the repository `from` already.
    pub(super) fn pushing(self, from: Option<String>) -> Self {
        Self {
            pushing: Some(from),
            ..self
        }
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

    /// Asks the registry for `path`. Any answer that is no redirect and no challenge is returned, whatever its
    /// status.
    pub(super) fn ask(&self, path: &str, ask: Ask<'_>) -> Attempt<Response<Body>> {
        self.ask_at(&self.home()?.with_path(path), ask)
    }

    /// The same at a place that the registry named.
    pub(super) fn ask_at(&self, url: &str, ask: Ask<'_>) -> Attempt<Response<Body>> {
        let home = self.home()?;
        let mut challenged = false;
        loop {
            let authorization = self.lock().header.clone();
            let (response, at_home) = self.follow(url, &home.0, ask, authorization.as_ref())?;
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
        self.permitted(&target, "it names a place at")?;
        let mut response = self.follow(url, &target, ask, None)?.0;
        mark_elsewhere(&mut response, &target);
        Ok(response)
    }

    /// Where the registry is.
    fn home(&self) -> Attempt<Home> {
        let url = format!("{}://{}/", self.scheme()?, self.authority);
        let uri = url.parse().map_err(|_| self.odd("the URL is malformed"))?;
        Ok(Home(uri))
    }

    /// Asks `url` and wherever it redirects to; only the origin of `home` ever sees `authorization`.
    fn follow(
        &self,
        url: &str,
        home: &Uri,
        ask: Ask<'_>,
        authorization: Option<&Secret>,
    ) -> Attempt<(Response<Body>, bool)> {
        let mut uri: Uri = url.parse().map_err(|_| self.odd("the URL is malformed"))?;
        for _ in 0..=MAX_REDIRECTS {
            let at_home = same_origin(&uri, home);
            let mut response = self.once(&uri, ask, authorization.filter(|_| at_home))?;
            if !response.status().is_redirection() {
                if !at_home {
                    mark_elsewhere(&mut response, &uri);
                }
                return Ok((response, at_home));
            }
            if !matches!(ask.verb, Verb::Get | Verb::Head) {
                // What was sent would have to be sent again, to somebody nobody named.
                return Err(self.odd("it redirects what is sent to it").into());
            }
            uri = self.location(&uri, &response, "it redirects")?;
        }
        Err(self.odd("it redirects too often").into())
    }

    /// One request, and its answer whatever it is.
    fn once(
        &self,
        uri: &Uri,
        ask: Ask<'_>,
        authorization: Option<&Secret>,
    ) -> Attempt<Response<Body>> {
        let method = match ask.verb {
            Verb::Get => Method::GET,
            Verb::Head => Method::HEAD,
            Verb::Post => Method::POST,
            Verb::Patch => Method::PATCH,
            Verb::Put => Method::PUT,
        };
        // What is asked for is named by its digest: nothing on the way is to pack it, which without a word
        // everybody may (RFC 9110 §12.5.3).
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(accept) = ask.accept {
            request = request.header(header::ACCEPT, accept);
        }
        // No `If-Range`: the content is named by its digest, so it is that or it is refused.
        if let Some(from) = ask.from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization.expose());
        }
        let malformed =
            |error: ureq::http::Error| self.odd(&format!("the request is malformed: {error}"));
        if matches!(ask.verb, Verb::Get | Verb::Head) {
            let request = request.body(()).map_err(malformed)?;
            return self.send(uri, |agent| agent.run(request));
        }
        let Some(sent) = ask.sent else {
            let request = request.body(&[][..]).map_err(malformed)?;
            return self.send(uri, |agent| agent.run(request));
        };
        request = request
            .header(header::CONTENT_TYPE, sent.content_type)
            .header(header::CONTENT_LENGTH, sent.length);
        if let Some(at) = sent.at.filter(|_| sent.length > 0) {
            let range = format!("{at}-{}", at + sent.length - 1);
            request = request.header(header::CONTENT_RANGE, range);
        }
        let mut body = (sent.open)()?;
        let request = request
            .body(ureq::SendBody::from_reader(&mut body))
            .map_err(malformed)?;
        self.send(uri, |agent| agent.run(request))
    }

    /// Where a list goes on, if the registry says so, in its own place.
    pub(super) fn next_page(&self, asked: &str, response: &Response<Body>) -> Option<String> {
        let home = self.home().ok()?;
        let from: Uri = match asked.starts_with('/') {
            true => home.with_path(asked).parse().ok()?,
            false => asked.parse().ok()?,
        };
        let links = response.headers().get_all(header::LINK);
        let next = links
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(next_link)?;
        let next = resolve(&from, next).filter(|next| same_origin(next, &home.0))?;
        Some(next.to_string())
    }

    /// Where an upload goes on that `asked` (a path or a URL) was asked about.
    pub(super) fn upload_location(&self, asked: &str, response: &Response<Body>) -> Attempt<Uri> {
        let home = self.home()?;
        let url = match asked.starts_with('/') {
            true => home.with_path(asked),
            false => asked.to_owned(),
        };
        let from: Uri = url.parse().map_err(|_| self.odd("the URL is malformed"))?;
        self.location(&from, response, "it sends uploads")
    }

    /// Where an answer points to, if that may be asked at all; `it` says what the answer does.
    fn location(&self, from: &Uri, response: &Response<Body>, it: &str) -> Attempt<Uri> {
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| self.odd(&format!("{it} to nowhere")))?;
        // What it says is not repeated: it may hold a password or a signature.
        let target = resolve(from, location)
            .ok_or_else(|| self.odd(&format!("{it} to what is no URL, or one with a password")))?;
        self.permitted(&target, &format!("{it} to"))?;
        Ok(target)
    }

    /// Whether anything may be asked of `target`, where a registry sends us; `how` says by what it does.
    fn permitted(&self, target: &Uri, how: &str) -> Attempt<()> {
        let authority = target
            .authority()
            .map_or("", |authority| authority.as_str());
        self.options.refuse_blocked(authority, &self.what)?;
        match target.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.options.may_be_plain(authority) => Ok(()),
            _ => Err(self
                .odd(&format!("{how} `{}`, which is not HTTPS", clip(authority)))
                .into()),
        }
    }

    /// Sends a request by the way there is to `uri`.
    fn send(
        &self,
        uri: &Uri,
        request: impl FnOnce(&ureq::Agent) -> std::result::Result<Response<Body>, ureq::Error>,
    ) -> Attempt<Response<Body>> {
        self.send_by(&self.agents.to(uri)?, uri, request)
    }

    fn send_by(
        &self,
        way: &Way,
        uri: &Uri,
        request: impl FnOnce(&ureq::Agent) -> std::result::Result<Response<Body>, ureq::Error>,
    ) -> Attempt<Response<Body>> {
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
        let (mut silent, mut hung_up) = (false, false);
        let probe = self.send_by(&self.agents.distrusting(&uri)?, &uri, |agent| {
            let answer = agent
                .get(&uri)
                .config()
                .timeout_global(Some(PROBE))
                .build()
                .call();
            silent = matches!(answer, Err(ureq::Error::Timeout(_)));
            hung_up = answer.as_ref().is_err_and(failure::is_hang_up);
            answer
        });
        match probe {
            // Its certificate is looked at when something is asked.
            Ok(_) | Err(Failure::Final(ImageError::Tls { .. } | ImageError::Clock { .. })) => {
                Ok("https")
            }
            Err(Failure::Final(ImageError::PlainHttp { .. })) => Ok("http"),
            Err(_) if silent => Ok("http"),
            // Some servers without TLS end the connection without a word. One that is not well does so, too.
            Err(_) if hung_up && self.answers_plainly() => Ok("http"),
            Err(other) => Err(other),
        }
    }

    /// Whether a server answers plain HTTP, and not that it wants TLS.
    fn answers_plainly(&self) -> bool {
        let Ok(uri) = format!("http://{}/v2/", self.authority).parse::<Uri>() else {
            return false;
        };
        let Ok(way) = self.agents.distrusting(&uri) else {
            return false;
        };
        let answer = self.send_by(&way, &uri, |agent| {
            let request = agent.get(&uri).config().timeout_global(Some(PROBE));
            request.build().call()
        });
        answer.is_ok_and(|answer| answer.status() != StatusCode::BAD_REQUEST)
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

/// The host that answered in the registry's place.
#[derive(Clone)]
struct Elsewhere(String);

fn mark_elsewhere(response: &mut Response<Body>, uri: &Uri) {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    response.extensions_mut().insert(Elsewhere(clip(host)));
}

/// The target of the link with `rel="next"` in a `Link` header (RFC 8288).
fn next_link(value: &str) -> Option<&str> {
    let mut rest = value;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, parameters) = after.split_once('>')?;
        let end = parameters.find('<').unwrap_or(parameters.len());
        let is_next = parameters[..end].split([';', ',']).any(|parameter| {
            parameter
                .trim()
                .split_once('=')
                .is_some_and(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel")
                        && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
                })
        });
        if is_next {
            return Some(target);
        }
        rest = &parameters[end..];
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
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    // A registry that does not know of the TLS in front of it: what was asked for safely stays safe.
    let plain = format!("http://{authority}/");
    let text = match text.strip_prefix(&plain) {
        Some(rest) if scheme == "https" => format!("https://{authority}/{rest}"),
        _ => text,
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
