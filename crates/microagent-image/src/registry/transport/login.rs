//! Answers to challenges: Basic credentials, and tokens traded for them (the distribution token protocol).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ureq::Body;
use ureq::http::{Response, StatusCode, Uri, header};

use super::super::auth::{Challenge, Credential, challenges};
use super::super::read_bounded;
use super::{Attempt, Transport, denied};
use crate::error::clip;

const MAX_TOKEN: u64 = 1 << 20;

impl Transport<'_> {
    /// Answers a challenge, unless another thread did since `used` was sent.
    pub(super) fn authorize(&self, response: &Response<Body>, used: Option<&str>) -> Attempt<()> {
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
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{username}:{password}")))
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
