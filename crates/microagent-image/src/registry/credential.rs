//! Who asks: credentials as the caller has them. None is ever shown, and each is wiped when it is dropped.

use std::fmt;

use zeroize::Zeroizing;

use super::scope::RegistryScope;

/// A password or a token. It shows itself to nobody who does not ask by name, and is wiped from memory
/// when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret; the string's memory becomes the secret's.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What proves who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A user name and a password or access token.
    Basic {
        /// The user name.
        username: String,
        /// The password or access token.
        password: Secret,
    },
    /// A token that the registry's token service trades for others (an OAuth 2 refresh token).
    Identity(Secret),
    /// A token sent to the registry as it is.
    Bearer(Secret),
}

impl Credential {
    /// The user name, where there is one.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Basic { username, .. } => Some(username),
            Self::Identity(_) | Self::Bearer(_) => None,
        }
    }
}

/// Where credentials come from: the caller's files, helpers or arguments. This library reads none itself.
pub trait Credentials: Send + Sync {
    /// The credential for the repository or registry `scope`; `None` asks anonymously. Called at most
    /// once per pull, only when the registry asks for one.
    ///
    /// # Errors
    /// A sentence that says why the credential could not be had, without the credential. The registry is
    /// then asked anonymously; if it refuses, the sentence is part of the error.
    fn credential(&self, scope: &RegistryScope) -> std::result::Result<Option<Credential>, String>;
}

impl Credentials for Credential {
    fn credential(
        &self,
        _scope: &RegistryScope,
    ) -> std::result::Result<Option<Credential>, String> {
        Ok(Some(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let basic = Credential::Basic {
            username: "u".into(),
            password: "hunter2".into(),
        };
        let bearer = Credential::Bearer("hunter2".into());
        let shown = format!("{basic:?} {basic:#?} {bearer:?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("\"u\""),
            "{shown}"
        );
    }
}
