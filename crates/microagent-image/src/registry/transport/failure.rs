//! What a failed request means: whether it may pass, whose fault it is, and what would help.

use std::io;
use std::time::{Duration, SystemTime};

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::super::credential::{Credential, Secret};
use super::super::retry::{asked_to_wait, clock_of};
use super::{Elsewhere, Transport};
use crate::error::{ImageError, clip};

const MAX_ERROR: u64 = 64 << 10;
/// A difference between two clocks that matters to tokens and certificates.
const SKEW: Duration = Duration::from_secs(300);

/// Why a request failed.
pub(crate) enum Failure {
    /// It may go well the next time.
    Passing(Passing),
    /// It will not.
    Final(ImageError),
}

/// A failure that may pass.
pub(crate) struct Passing {
    pub(crate) reason: String,
    /// How long the registry asked to wait.
    pub(crate) wait: Option<Duration>,
    /// What it will be if it does not pass.
    pub(crate) kind: PassingKind,
}

/// Failures that have a name of their own once they were tried often enough.
pub(crate) enum PassingKind {
    /// The connection broke, or the registry is not well.
    Connection,
    /// The registry says that it was asked too often.
    Limited,
    /// This host could not be looked up.
    LookUp(String),
}

impl Failure {
    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(Passing {
            reason: clip(&reason.into()),
            wait: None,
            kind: PassingKind::Connection,
        })
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Final(error)
    }
}

impl Transport<'_> {
    /// Turns an answer nobody wanted into an error, with the registry's own words.
    pub(crate) fn refusal(&self, response: Response<Body>, doing: &str) -> Failure {
        let status = response.status();
        let elsewhere = response
            .extensions()
            .get::<Elsewhere>()
            .map(|Elsewhere(host)| host.clone());
        let wait = asked_to_wait(response.headers());
        let clock = clock_of(response.headers());
        let body = self.bytes(response, MAX_ERROR).unwrap_or_default();
        let answered = match status.canonical_reason() {
            Some(_) => format!("it answered {status}"),
            None => format!("it answered {}", status.as_u16()),
        };
        let reason = match words(&body) {
            Some(says) => format!("{answered}: {}", clip(&self.without_secrets(&says))),
            None => answered,
        };
        match status {
            StatusCode::NOT_FOUND if doing.contains("manifest") => {
                Failure::Final(ImageError::NotFound {
                    image: self.what.clone(),
                    registry: self.registry().to_owned(),
                    hint: "Check the name and the tag.".into(),
                })
            }
            // Nobody there knows us: a login would change nothing.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if elsewhere.is_some() => {
                Failure::Final(ImageError::Registry {
                    registry: self.registry().to_owned(),
                    doing: doing.to_owned(),
                    reason: format!(
                        "it sends for that to {}, which answered {status}",
                        elsewhere.unwrap_or_default()
                    ),
                })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Final(self.denied(clock)),
            StatusCode::BAD_REQUEST if wants_tls(&body) => Failure::Final(ImageError::WantsTls {
                registry: self.registry().to_owned(),
                doing: doing.to_owned(),
            }),
            status if may_pass(status) => Failure::Passing(Passing {
                reason,
                wait,
                kind: match status {
                    StatusCode::TOO_MANY_REQUESTS => PassingKind::Limited,
                    _ => PassingKind::Connection,
                },
            }),
            _ => Failure::Final(ImageError::Registry {
                registry: self.registry().to_owned(),
                doing: doing.to_owned(),
                reason,
            }),
        }
    }

    /// What a registry says, should it repeat to us what we proved ourselves with.
    fn without_secrets(&self, says: &str) -> String {
        let authorization = self.lock();
        let header = authorization.header.as_ref().map(Secret::expose);
        let token = header
            .and_then(|header| header.split_once(' '))
            .map(|(_, token)| token);
        let secret = match &authorization.credential {
            Some(Some(
                Credential::Basic {
                    password: secret, ..
                }
                | Credential::Identity(secret)
                | Credential::Bearer(secret),
            )) => Some(secret),
            _ => None,
        };
        // The forms in which a token service was sent it.
        let pair = match &authorization.credential {
            Some(Some(Credential::Basic { username, password })) => {
                Some(super::login::encoded_pair(username, password))
            }
            _ => None,
        };
        let in_form = secret.map(super::login::percent_encoded);
        let sent = [&pair, &in_form].into_iter().flatten();
        let secrets = [token, secret.map(Secret::expose)].into_iter().flatten();
        secrets
            .chain(sent.map(|text| text.as_str()))
            .filter(|secret| !secret.is_empty())
            .fold(says.to_owned(), |says, secret| masked(&says, secret))
    }

    /// The registry or its token service says no. `clock` is what its clock shows.
    pub(super) fn denied(&self, clock: Option<SystemTime>) -> ImageError {
        let login = format!("`microagent login {}`", self.registry());
        let mut reason = {
            let authorization = self.lock();
            match (&authorization.credential, &authorization.fault) {
                (Some(Some(_)), _) => {
                    format!(
                        "the credentials were not accepted, or do not allow this, or it does not exist there; check the name, or log in again with {login}"
                    )
                }
                (_, Some(fault)) => format!("it was asked anonymously, because {fault}"),
                _ => format!(
                    "it does not exist there, or needs a login; check the name, or log in with {login}"
                ),
            }
        };
        if let Some(skew) = clock.and_then(skew) {
            reason = format!("{reason}; {skew}, which makes tokens and certificates invalid");
        }
        self.unauthorized(reason)
    }

    /// The registry wants a password, and there is none.
    pub(super) fn login_wanted(&self) -> ImageError {
        let reason = match &self.lock().fault {
            Some(fault) => format!("it wants a user name and a password, and {fault}"),
            None => format!(
                "it wants a user name and a password, and none are known; log in with `microagent login {}`",
                self.registry()
            ),
        };
        self.unauthorized(reason)
    }

    pub(super) fn failure(&self, error: &ureq::Error, host: &str, proxy: Option<&str>) -> Failure {
        if let Some(tls) = tls_error(error) {
            return Failure::Final(self.tls_failure(tls, host));
        }
        let text = plain_words(error);
        if let Some(proxy) = proxy {
            if let ureq::Error::ConnectProxyFailed(says) = error {
                return self.proxy_refused(proxy, says);
            }
            // Nobody but the proxy is ever connected to.
            if is_unreachable(error) {
                return Failure::Final(ImageError::Proxy {
                    proxy: proxy.to_owned(),
                    registry: self.registry().to_owned(),
                    reason: clip(&text),
                });
            }
        }
        match error {
            ureq::Error::HostNotFound => Failure::Final(self.no_such_host(host, "no address")),
            ureq::Error::Io(io) if is_lookup(io) => {
                // The resolver itself may be slow or restarting.
                if text.contains("Temporary failure") {
                    Failure::Passing(Passing {
                        reason: clip(&text),
                        wait: None,
                        kind: PassingKind::LookUp(host.to_owned()),
                    })
                } else {
                    Failure::Final(self.no_such_host(host, &text))
                }
            }
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_)
            // A server that closes before it answers looks like this.
            | ureq::Error::Protocol(_) => Failure::passing(text),
            _ => Failure::Final(self.odd(&clip(&text))),
        }
    }

    pub(crate) fn no_such_host(&self, host: &str, reason: &str) -> ImageError {
        ImageError::NoSuchHost {
            host: clip(host),
            registry: self.registry().to_owned(),
            reason: clip(reason),
        }
    }

    fn proxy_refused(&self, proxy: &str, says: &str) -> Failure {
        let status = says
            .split(|c: char| !c.is_ascii_digit())
            .find(|digits| digits.len() == 3);
        let why = match status {
            Some("407") => "it wants a user name and a password (407)".to_owned(),
            Some("403" | "405") => "it does not allow this host or port (403)".to_owned(),
            // The proxy works, and could not reach the registry this time.
            Some(code @ ("502" | "503" | "504")) => {
                return Failure::passing(format!("the proxy {proxy} could not reach it ({code})"));
            }
            _ => clip(says),
        };
        Failure::Final(ImageError::Proxy {
            proxy: proxy.to_owned(),
            registry: self.registry().to_owned(),
            reason: why,
        })
    }

    fn tls_failure(&self, tls: &rustls::Error, host: &str) -> ImageError {
        use rustls::CertificateError as Bad;
        let registry = || match host == self.authority {
            true => self.registry().to_owned(),
            false => host.to_owned(),
        };
        let time = |seconds: u64| {
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            at.map_or_else(String::new, |at| {
                humantime::format_rfc3339_seconds(at).to_string()
            })
        };
        match tls {
            // What came was no TLS record: plain HTTP, most likely.
            rustls::Error::InvalidMessage(_) => ImageError::PlainHttp {
                registry: registry(),
            },
            rustls::Error::InvalidCertificate(Bad::NotValidYetContext {
                time: now,
                not_before,
            }) => ImageError::Clock {
                registry: registry(),
                reason: format!("is valid from {}", time(not_before.as_secs())),
                now: time(now.as_secs()),
            },
            rustls::Error::InvalidCertificate(Bad::ExpiredContext {
                time: now,
                not_after,
            }) => ImageError::Clock {
                registry: registry(),
                reason: format!("was valid until {}", time(not_after.as_secs())),
                now: time(now.as_secs()),
            },
            tls => ImageError::Tls {
                registry: registry(),
                reason: clip(&tls.to_string()),
            },
        }
    }
}

/// Whether the same request may go well later. Proxies and clouds have numbers of their own beyond the usual ones.
fn may_pass(status: StatusCode) -> bool {
    let never = [
        StatusCode::NOT_IMPLEMENTED,
        StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    ];
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
    ) || (status.is_server_error() && !never.contains(&status))
}

/// `text` without `secret`, and without the beginning of it where somebody cut it short.
fn masked(text: &str, secret: &str) -> String {
    /// So much of a longer secret is enough to be taken for it.
    const ENOUGH: usize = 12;
    let head = secret.char_indices().nth(ENOUGH);
    let head = head.map_or(secret, |(end, _)| &secret[..end]);
    let (mut masked, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(head) {
        masked.push_str(&rest[..at]);
        masked.push('…');
        let found = &rest[at..];
        let same = found.chars().zip(secret.chars());
        let length: usize = same
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        rest = &found[length..];
    }
    masked.push_str(rest);
    masked
}

/// How far this host's clock is from one that shows `there`, if that is too far.
fn skew(there: SystemTime) -> Option<String> {
    let here = SystemTime::now();
    let (difference, word) = match here.duration_since(there) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (difference > SKEW).then(|| {
        let rounded = Duration::from_secs(difference.as_secs() / 60 * 60);
        format!(
            "this host's clock is {} {word} the registry's",
            humantime::format_duration(rounded)
        )
    })
}

/// The message of an error without the library's own prefixes.
fn plain_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "it did not answer in time".into(),
        other => other.to_string(),
    }
}

/// Whether the other side ended the connection instead of answering.
pub(super) fn is_hang_up(error: &ureq::Error) -> bool {
    let ureq::Error::Io(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// Whether a connection could not be made at all.
fn is_unreachable(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(error) => {
            is_lookup(error)
                || matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable
                )
        }
        _ => false,
    }
}

/// The standard library gives a failed look-up no kind of its own, only these words.
fn is_lookup(error: &io::Error) -> bool {
    error.to_string().starts_with("failed to lookup address")
}

/// Go's and nginx's answers to plain HTTP on a TLS port.
fn wants_tls(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    text.contains("HTTP request to an HTTPS server")
        || text.contains("plain HTTP request was sent to HTTPS port")
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
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_also_where_they_were_cut_short() {
        let token = "eyJhbGciOiJSUzI1NiJ9.and.so.on.äöü";
        for (text, expect) in [
            (format!("bad {token}!"), "bad …!"),
            (format!("{token}{token}"), "……"),
            ("bad eyJhbGciOiJSUzI1".to_owned(), "bad …"),
            ("bad eyJhbGci".to_owned(), "bad eyJhbGci"),
            (String::new(), ""),
        ] {
            assert_eq!(masked(&text, token), expect, "{text}");
        }
        assert_eq!(masked("a pw, pw", "pw"), "a …, …");
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for (number, expect) in [
            (429, true),
            (500, true),
            (503, true),
            (507, true),
            (520, true),
            (501, false),
            (404, false),
            (425, false),
        ] {
            let status = StatusCode::from_u16(number).unwrap();
            assert_eq!(may_pass(status), expect, "{number}");
        }
    }
}
