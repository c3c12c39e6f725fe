//! Registries: who we are to them, and what is particular to them.

mod settings;

use std::path::PathBuf;

use microagent_image::{Credential, LoginCheck, RegistryScope, Secret, check_login};
use serde::Serialize;

pub(crate) use self::settings::{fuzz, options as registry_options};
use crate::{
    auth::{self, file, helper::Helper, keep},
    config::Config,
    error::{Error, Result},
};

/// The registries, as one configuration sees them.
#[derive(Clone, Copy, Debug)]
pub struct Registries<'a> {
    config: &'a Config,
}

/// How a login is kept.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoginOptions {
    /// The credential helper `docker-credential-NAME` that keeps it, from now on too; without, the one
    /// that the own `auth.json` names, else that file itself.
    pub helper: Option<String>,
}

/// A login that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Login {
    /// The registry, or the part of it, that it is for.
    pub registry: String,
    /// The user.
    pub username: String,
    /// Whether the registry accepted it. One that asks nobody for a login cannot tell.
    pub verified: bool,
    /// The own credential file.
    pub file: PathBuf,
    /// The helper that keeps it, in place of the file.
    pub helper: Option<String>,
}

/// What was forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Logout {
    /// The registry, or the part of it.
    pub registry: String,
    /// Whether there was something to forget.
    pub removed: bool,
    /// The file of another program that still has credentials for it.
    pub remains_in: Option<PathBuf>,
}

/// What proves who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A user name and a password or access token.
    Password,
    /// A token that is traded for others.
    IdentityToken,
    /// A token that is sent as it is.
    Token,
}

/// Who we are to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Identity {
    /// The registry, or the part of it.
    pub registry: String,
    /// The user, where the credential tells.
    pub username: Option<String>,
    /// What proves it.
    pub kind: CredentialKind,
    /// The file that has it, or names the helper.
    pub file: PathBuf,
    /// The helper that has it.
    pub helper: Option<String>,
    /// Whether the registry accepts it, where it was asked.
    pub accepted: Option<bool>,
}

impl<'a> Registries<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// Shows a user name and password to a registry and, if it accepts them, keeps them.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached, or they cannot be kept. Nothing is kept then.
    pub fn login(
        &self,
        registry: &RegistryScope,
        username: &str,
        password: &Secret,
        options: &LoginOptions,
    ) -> Result<Login> {
        check_words(username, password)?;
        let path = self.config.own_auth_file();
        let helper = match &options.helper {
            Some(name) => Some(name.clone()),
            None => auth::read(&path)
                .map_err(|reason| self.trouble(registry, "stored", reason))?
                .and_then(|file| file.helper(registry).map(str::to_owned)),
        };
        // Before the password goes anywhere: that there is a place for it.
        let program = helper
            .as_deref()
            .map(|name| self.helper(name))
            .transpose()
            .map_err(|reason| self.trouble(registry, "stored", reason))?;
        let credential = Credential::Basic {
            username: username.to_owned(),
            password: password.clone(),
        };
        let checked = check_login(
            registry,
            &credential,
            &registry_options(self.config)?,
            &|_| {},
        )?;
        match (&program, &helper) {
            (Some(program), Some(name)) => {
                program
                    .store(&file::server(registry), username, password)
                    .map_err(|reason| self.trouble(registry, "stored", reason))?;
                keep::helper(&path, registry, name)?;
            }
            _ => keep::password(&path, registry, username, password)?,
        }
        Ok(Login {
            registry: registry.to_string(),
            username: username.to_owned(),
            verified: checked == LoginCheck::Accepted,
            file: path,
            helper,
        })
    }

    /// Forgets the login for a registry. What other programs keep is theirs, and named.
    ///
    /// # Errors
    /// When the file or the helper cannot be changed.
    pub fn logout(&self, registry: &RegistryScope) -> Result<Logout> {
        let path = self.config.own_auth_file();
        let own = auth::read(&path).map_err(|reason| self.trouble(registry, "removed", reason))?;
        let mut removed = keep::forget(&path, registry)?;
        if let Some(name) = own.as_ref().and_then(|file| file.helper(registry)) {
            removed |= self
                .helper(name)
                .and_then(|helper| helper.erase(&file::server(registry)))
                .map_err(|reason| self.trouble(registry, "removed", reason))?;
        }
        // What cannot be read now will be told when it is needed.
        let remains = auth::find(self.config, registry).ok().flatten();
        Ok(Logout {
            registry: registry.to_string(),
            removed,
            remains_in: remains.map(|found| found.file),
        })
    }

    /// Who we are to a registry: by what is known here, and with `ask` by what the registry says.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`]; when credentials cannot be read; when the registry cannot be asked.
    pub fn whoami(&self, registry: &RegistryScope, ask: bool) -> Result<Identity> {
        let found = auth::find(self.config, registry)
            .map_err(|reason| self.trouble(registry, "read", reason))?
            .ok_or_else(|| Error::NotLoggedIn {
                registry: registry.to_string(),
            })?;
        let accepted = match ask {
            true => self.asked(registry, &found.credential)?,
            false => None,
        };
        Ok(Identity {
            registry: registry.to_string(),
            username: found.credential.username().map(str::to_owned),
            kind: match found.credential {
                Credential::Basic { .. } => CredentialKind::Password,
                Credential::Identity(_) => CredentialKind::IdentityToken,
                _ => CredentialKind::Token,
            },
            file: found.file,
            helper: found.helper,
            accepted,
        })
    }

    /// What the registry says; nothing if it asks nobody.
    fn asked(&self, registry: &RegistryScope, credential: &Credential) -> Result<Option<bool>> {
        use microagent_image::ImageError;
        match check_login(
            registry,
            credential,
            &registry_options(self.config)?,
            &|_| {},
        ) {
            Ok(LoginCheck::Accepted) => Ok(Some(true)),
            Ok(LoginCheck::NotAsked) => Ok(None),
            Err(ImageError::LoginRefused { .. }) => Ok(Some(false)),
            Err(error) => Err(error.into()),
        }
    }

    fn helper(&self, name: &str) -> Result<Helper, String> {
        Helper::find(
            name,
            self.config.helper_path.as_deref(),
            self.config.helper_timeout,
        )
    }

    fn trouble(&self, registry: &RegistryScope, what: &'static str, reason: String) -> Error {
        Error::Credentials {
            registry: registry.to_string(),
            what,
            reason,
        }
    }
}

/// What no registry could accept, or no header could carry.
fn check_words(username: &str, password: &Secret) -> Result<()> {
    if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
        return Err(Error::invalid(
            "the user name",
            "it is empty, or has a colon or a control character",
        ));
    }
    // The keys that some clouds give for a password are JSON of several lines.
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if password.expose().is_empty() || password.expose().contains(odd) {
        return Err(Error::invalid(
            "the password",
            "it is empty, or has a control character",
        ));
    }
    Ok(())
}
