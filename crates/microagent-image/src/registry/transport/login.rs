//! Answers to challenges: Basic credentials, and tokens traded for them (the distribution token protocol,
//! and its OAuth 2 form for identity tokens).

use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ureq::Body;
use ureq::http::{Request, Response, StatusCode, Uri, header};
use zeroize::Zeroizing;

use super::super::challenge::{Challenge, challenges};
use super::super::credential::{Credential, Secret};
use super::super::retry::clock_of;
use super::{Ask, Attempt, Transport, is_bare};
use crate::event::ImageEvent;

const MAX_TOKEN: u64 = 1 << 20;
/// Who we are to an OAuth 2 token service, which may log it.
const CLIENT_ID: &str = "microagent";

/// What a token service is asked, by the registry's challenge.
struct TokenRequest<'c> {
    realm: &'c str,
    service: Option<&'c str>,
    scopes: Vec<String>,
}

impl Transport<'_> {
    /// Answers a challenge, unless another thread did since `used` was sent.
    pub(super) fn authorize(
        &self,
        response: &Response<Body>,
        used: Option<&Secret>,
    ) -> Attempt<()> {
        // One thread at a time: the others find its answer.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().header.as_ref() != used {
            return Ok(());
        }
        let credential = self.credential();
        let offered: Vec<Challenge> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        let bearer = offered
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let header = match (bearer.or(offered.first()), credential) {
            (_, Some(Credential::Bearer(token))) => bearer_header(&token),
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credential,
            ) => {
                let request = TokenRequest {
                    realm,
                    service: service.as_deref(),
                    scopes: self.scopes(scope.as_deref()),
                };
                bearer_header(&self.token(&request, credential)?)
            }
            (Some(Challenge::Basic), Some(Credential::Basic { username, password })) => {
                basic(&username, &password)
            }
            (Some(Challenge::Basic), Some(Credential::Identity(_))) => {
                return Err(self.unauthorized("it wants a user name and a password, and only an identity token is stored; log in again".into()).into());
            }
            (Some(Challenge::Basic), None) => {
                return Err(self.login_wanted().into());
            }
            (None, _) => {
                return Err(self
                    .unauthorized(
                        "it does not say how to log in (no Basic or Bearer challenge)".into(),
                    )
                    .into());
            }
        };
        self.lock().header = Some(header);
        Ok(())
    }

    /// What a token is wanted for, where the registry said `said`.
    fn scopes(&self, said: Option<&str>) -> Vec<String> {
        let Some(path) = self.scope.path() else {
            return said.map(str::to_owned).into_iter().collect();
        };
        let Some(from) = &self.pushing else {
            let said = said.filter(|said| !said.is_empty());
            let pull = || format!("repository:{path}:pull");
            return vec![said.map_or_else(pull, str::to_owned)];
        };
        // One token for everything: what is there is looked at before anything is sent.
        let mut scopes = vec![format!("repository:{path}:pull,push")];
        scopes.extend(from.iter().map(|from| format!("repository:{from}:pull")));
        scopes
    }

    /// What the caller has for this registry; asked for once.
    fn credential(&self) -> Option<Credential> {
        if let Some(known) = &self.lock().credential {
            return known.clone();
        }
        // Not under the lock: a helper may ask a person.
        let found = match self
            .credentials
            .map(|source| source.credential(&self.scope))
        {
            Some(Ok(found)) => found,
            // Public images need none, and a broken helper must not stand before them.
            Some(Err(reason)) => {
                (self.events)(ImageEvent::NoCredentials {
                    registry: self.registry().to_owned(),
                    reason: reason.clone(),
                });
                self.lock().fault = Some(reason);
                None
            }
            None => None,
        };
        self.lock().credential = Some(found.clone());
        found
    }

    /// Trades credentials, or their absence, for a token.
    fn token(&self, request: &TokenRequest<'_>, credential: Option<Credential>) -> Attempt<Secret> {
        let uri: Uri = request
            .realm
            .parse()
            .map_err(|_| self.odd("its token service is no URL"))?;
        if !is_bare(&uri) {
            return Err(self
                .odd("its token service is no whole URL, or one with a password")
                .into());
        }
        // Before credentials go there: a blocked host is not reached by this way either.
        self.permitted(&uri, "its token service is")?;
        let response = match credential {
            Some(Credential::Identity(token)) => self.oauth(&uri, request, &token)?,
            other => {
                let header = match &other {
                    Some(Credential::Basic { username, password }) => {
                        Some(basic(username, password))
                    }
                    _ => None,
                };
                let separator = if request.realm.contains('?') {
                    '&'
                } else {
                    '?'
                };
                let form = request.form(&request.scopes, &[]);
                let url = format!("{}{separator}{}", request.realm, *form);
                let ask = Ask {
                    accept: Some("application/json"),
                    ..Ask::default()
                };
                self.follow(&url, &uri, ask, header.as_ref())?.0
            }
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.denied(clock_of(response.headers())).into());
            }
            _ => return Err(self.refusal(response, "fetching a token")),
        }
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }
        let bytes = Zeroizing::new(self.bytes(response, MAX_TOKEN)?);
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| self.odd("its token service's answer cannot be read"))?;
        [token.token, token.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .filter(|token| token.bytes().all(|b| b.is_ascii_graphic()))
            .map(|token| Secret::from(token.as_str()))
            .ok_or_else(|| self.odd("its token service gave no token").into())
    }

    /// Trades an identity token (RFC 6749 §6). The request is not redirected: its body is the secret.
    fn oauth(
        &self,
        uri: &Uri,
        request: &TokenRequest<'_>,
        identity: &Secret,
    ) -> Attempt<Response<Body>> {
        // Of a name that comes twice in a form, services read the first; RFC 6749 §3.3 has one with spaces.
        let scopes = match request.scopes.is_empty() {
            true => Vec::new(),
            false => vec![request.scopes.join(" ")],
        };
        let body = request.form(
            &scopes,
            &[
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", identity.expose()),
            ],
        );
        let post = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(body.as_str())
            .map_err(|error| self.odd(&format!("the request is malformed: {error}")))?;
        let response = self.send(uri, |agent| agent.run(post))?;
        if response.status().is_redirection() {
            return Err(self.odd("its token service redirects").into());
        }
        Ok(response)
    }
}

impl TokenRequest<'_> {
    /// What is asked, in the form of a query.
    fn form(&self, scopes: &[String], more: &[(&str, &str)]) -> Zeroizing<String> {
        let mut form = Zeroizing::new(String::new());
        let service = self.service.map(|service| ("service", service));
        let scopes = scopes.iter().map(|scope| ("scope", scope.as_str()));
        for (name, value) in service
            .into_iter()
            .chain(scopes)
            .chain(more.iter().copied())
        {
            if !form.is_empty() {
                form.push('&');
            }
            form.push_str(name);
            form.push('=');
            percent_encode(value, &mut form);
        }
        form
    }
}

fn bearer_header(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.expose()))
}

fn basic(username: &str, password: &Secret) -> Secret {
    Secret::new(format!("Basic {}", *encoded_pair(username, password)))
}

/// A user name and password, as a header carries them.
pub(super) fn encoded_pair(username: &str, password: &Secret) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
    Zeroizing::new(BASE64.encode(pair.as_bytes()))
}

/// A secret, as a form carries it.
pub(super) fn percent_encoded(secret: &Secret) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    percent_encode(secret.expose(), &mut text);
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_each_scope_and_a_form_all_of_them_in_one() {
        let scopes = ["repository:a:pull,push", "repository:b:pull"].map(str::to_owned);
        let request = TokenRequest {
            realm: "https://auth.example/token",
            service: Some("a service"),
            scopes: scopes.to_vec(),
        };
        assert_eq!(
            *request.form(&request.scopes, &[]),
            "service=a%20service&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%3Apull"
        );
        assert_eq!(
            *request.form(&[scopes.join(" ")], &[("x", "+/=")]),
            "service=a%20service&scope=repository%3Aa%3Apull%2Cpush%20repository%3Ab%3Apull&x=%2B%2F%3D"
        );
    }
}
