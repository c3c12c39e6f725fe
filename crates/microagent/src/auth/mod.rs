//! Registry credentials: where they are looked for, in which order, and where a login is kept.

pub(crate) mod file;
pub(crate) mod helper;
pub(crate) mod keep;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use microagent_image::{Credential, Credentials, RegistryScope};
use zeroize::Zeroizing;

use self::{
    file::{AuthFile, MAX_FILE, Place},
    helper::Helper,
};
use crate::config::Config;

/// A credential and where it was.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) credential: Credential,
    /// The file that has it, or names the helper.
    pub(crate) file: PathBuf,
    /// The helper that has it.
    pub(crate) helper: Option<String>,
}

/// The credential for `scope`: of the first file that has one or knows a helper that has, from the most
/// particular of its entries. What cannot be read is passed over, and is the error if nothing is found.
pub(crate) fn find(config: &Config, scope: &RegistryScope) -> Result<Option<Found>, String> {
    let mut fault = None;
    for path in config.credential_files() {
        match find_in(config, &path, scope) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(reason) => {
                fault.get_or_insert(reason);
            }
        }
    }
    fault.map_or(Ok(None), Err)
}

fn find_in(config: &Config, path: &Path, scope: &RegistryScope) -> Result<Option<Found>, String> {
    let Some(file) = read(path)? else {
        return Ok(None);
    };
    let found = |credential, helper| {
        Ok(Some(Found {
            credential,
            file: path.to_owned(),
            helper,
        }))
    };
    let mut fault = None;
    for place in file.places(scope) {
        match place {
            Place::Here(credential) => return found(credential, None),
            Place::Broken { key, form } => {
                fault.get_or_insert(format!("`{key}` in {} is not {form}", path.display()));
            }
            Place::Helper { name, server } => {
                let answer =
                    Helper::find(&name, config.helper_path.as_deref(), config.helper_timeout)
                        .and_then(|helper| helper.get(&server));
                match answer {
                    Ok(Some(credential)) => return found(credential, Some(name)),
                    Ok(None) => {}
                    Err(reason) => {
                        fault.get_or_insert(format!("{reason} (named in {})", path.display()));
                    }
                }
            }
        }
    }
    fault.map_or(Ok(None), Err)
}

/// What a file says; `None` where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<AuthFile>, String> {
    let fault = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(fault)?;
    // Some tools leave an empty file behind.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match AuthFile::parse(&bytes) {
        Ok(file) => Ok(Some(file)),
        Err(reason) => Err(format!("{} cannot be used: {reason}", path.display())),
    }
}

/// The configuration as a place for credentials, looked into when a registry asks.
pub(crate) struct FromConfig(pub(crate) Config);

impl Credentials for FromConfig {
    fn credential(&self, scope: &RegistryScope) -> Result<Option<Credential>, String> {
        Ok(find(&self.0, scope)?.map(|found| found.credential))
    }
}

/// Reads a credential file and looks everything up in it, for fuzzing.
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(file) = AuthFile::parse(data) else {
        return;
    };
    for scope in [
        "docker.io/library/debian",
        "r.example:5000/team/app",
        "localhost",
    ] {
        if let Some(scope) = RegistryScope::from_key(scope) {
            drop(file.places(&scope));
            let _ = file.helper(&scope);
        }
    }
}

#[cfg(test)]
mod tests;
