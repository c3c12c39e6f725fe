//! Whether a registry accepts a credential.

use ureq::http::StatusCode;

use super::credential::Credential;
use super::options::RegistryOptions;
use super::scope::RegistryScope;
use super::transport::{Ask, Transport};
use crate::error::{ImageError, Result};
use crate::event::ImageEvent;

/// What a registry says to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginCheck {
    /// It asked for one and accepted this.
    Accepted,
    /// It asked for none, so nothing is known.
    NotAsked,
}

/// Shows `credential` to the registry of `scope`, which says whether it is good.
///
/// # Errors
/// [`ImageError::LoginRefused`] when it is not; else what keeps the registry from being asked.
pub fn check_login(
    scope: &RegistryScope,
    credential: &Credential,
    options: &RegistryOptions,
    events: &(dyn Fn(ImageEvent) + Sync),
) -> Result<LoginCheck> {
    let whole = scope.whole();
    let transport = Transport::new(whole, "a login".into(), options, Some(credential), events)?;
    let doing = "checking the login";
    super::retrying(&transport, doing, |_| {
        let response = transport.ask("/v2/", Ask::default())?;
        match response.status() {
            StatusCode::OK if transport.has_proved_itself() => Ok(LoginCheck::Accepted),
            StatusCode::OK => Ok(LoginCheck::NotAsked),
            _ => Err(transport.refusal(response, doing)),
        }
    })
    .map_err(|error| match error {
        ImageError::Unauthorized { registry, .. } => ImageError::LoginRefused { registry },
        other => other,
    })
}
