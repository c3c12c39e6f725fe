//! Registry credentials in files of the form of Docker's `config.json`.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use microagent_image::Credential;
use serde::Deserialize;

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    /// `user:password` in base64.
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

/// The credential for `registry` of the first file that has one; a file that is missing has none.
pub(crate) fn find(files: &[PathBuf], registry: &str) -> Result<Option<Credential>, String> {
    for path in files {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let bad = |reason: &str| format!("{} is not usable: {reason}", path.display());
        let file: AuthFile =
            serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        let entry = file
            .auths
            .iter()
            .find(|(key, _)| host(key) == host(registry));
        let Some((_, entry)) = entry else { continue };
        if let Some(token) = &entry.registrytoken {
            return Ok(Some(Credential::Bearer(token.clone())));
        }
        let Some(auth) = entry.auth.as_deref().filter(|auth| !auth.is_empty()) else {
            continue;
        };
        let decoded = STANDARD
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((username, password)) = decoded.as_deref().and_then(|text| text.split_once(':'))
        else {
            return Err(bad(&format!(
                "the entry of {registry} is not user:password in base64"
            )));
        };
        return Ok(Some(Credential::Basic {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    Ok(None)
}

/// The host and port that a key such as `https://index.example/v1/` means.
fn host(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = key.split('/').next().unwrap_or(key);
    // Docker's own registry is stored under the name of its old index.
    if host == "index.docker.io" || host == "registry-1.docker.io" {
        "docker.io"
    } else {
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn the_first_file_that_has_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            directory.path().join("missing.json"),
            write(
                &directory,
                "own.json",
                r#"{"auths":{"r.example:5000":{"auth":"dTpw"}}}"#,
            ),
            write(
                &directory,
                "docker.json",
                r#"{"auths":{"https://r.example:5000/v1/":{"auth":"eDp5"},"https://index.docker.io/v1/":{"auth":"YTpiOmM="}},"credsStore":"x"}"#,
            ),
        ];
        let basic = |registry: &str| match find(&files, registry).unwrap() {
            Some(Credential::Basic { username, password }) => Some((username, password)),
            _ => None,
        };
        assert_eq!(basic("r.example:5000"), Some(("u".into(), "p".into())));
        assert_eq!(basic("docker.io"), Some(("a".into(), "b:c".into())));
        assert_eq!(basic("other.example"), None);
    }

    #[test]
    fn a_file_that_is_broken_is_named_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let file = write(
            &directory,
            "a.json",
            r#"{"auths":{"r":{"auth":"%%secret"}}}"#,
        );
        let error = find(std::slice::from_ref(&file), "r").unwrap_err();
        assert!(
            error.contains("a.json") && !error.contains("secret"),
            "{error}"
        );
    }
}
