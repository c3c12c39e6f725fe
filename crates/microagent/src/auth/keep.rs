//! The own `auth.json`: written whole or not at all, for this user alone, one writer at a time. What
//! others put into it stays.

use std::{fs::File, io, path::Path};

use microagent_host::{
    fs::Private,
    lock::{Lock, Sharing},
};
use microagent_image::{RegistryScope, Secret};
use serde_json::{Map, Value, json};

use super::file::{self, MAX_FILE};
use crate::{
    error::{Error, IoContext, Result},
    files::{self, Durability},
};

/// Keeps a user name and password in the file itself.
pub(crate) fn password(
    path: &Path,
    scope: &RegistryScope,
    username: &str,
    password: &Secret,
) -> Result<()> {
    change(path, |root| {
        let entries = object(root, "auths");
        entries.retain(|key, _| !is(key, scope));
        let auth = file::entry(username, password);
        entries.insert(scope.to_string(), json!({ "auth": *auth }));
        true
    })?;
    Ok(())
}

/// Names the helper that keeps the credentials for `scope`, in place of the file.
pub(crate) fn helper(path: &Path, scope: &RegistryScope, name: &str) -> Result<()> {
    change(path, |root| {
        object(root, "auths").retain(|key, _| !is(key, scope));
        let helpers = object(root, "credHelpers");
        helpers.retain(|key, _| !is(key, scope));
        helpers.insert(scope.to_string(), json!(name));
        true
    })?;
    Ok(())
}

/// Forgets what the file itself has for `scope`; whether there was something.
pub(crate) fn forget(path: &Path, scope: &RegistryScope) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    change(path, |root| {
        let entries = object(root, "auths");
        let before = entries.len();
        entries.retain(|key, _| !is(key, scope));
        entries.len() < before
    })
}

fn is(key: &str, scope: &RegistryScope) -> bool {
    RegistryScope::from_key(key).as_ref() == Some(scope)
}

/// The object under `key`, made where there is none.
fn object<'r>(root: &'r mut Map<String, Value>, key: &str) -> &'r mut Map<String, Value> {
    let value = root.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

/// Reads the file, changes it, and replaces it if `with` says that it changed something.
fn change(path: &Path, with: impl FnOnce(&mut Map<String, Value>) -> bool) -> Result<bool> {
    let directory = path.parent().unwrap_or(Path::new("."));
    files::private_dir(directory)?;
    let lock_path = path.with_extension("json.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .private()
        .open(&lock_path)
        .context("open", &lock_path)?;
    let _lock = Lock::wait(file, Sharing::Exclusive, || ()).context("lock", &lock_path)?;
    let mut root = read(path)?;
    let changed = with(&mut root);
    if changed {
        files::write_json(path, &root, Durability::Synced)?;
    }
    Ok(changed)
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    use io::Read as _;
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).context("open", path),
    };
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    opened
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .context("read", path)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let unusable = || Error::Invalid {
        option: "auth.json",
        reason: format!(
            "{} is not a JSON object; mend it or move it away, nothing was changed",
            path.display()
        ),
    };
    // What the parser says of a value may hold the value.
    serde_json::from_slice(&bytes).map_err(|_| unusable())
}
