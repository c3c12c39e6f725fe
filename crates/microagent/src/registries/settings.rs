//! `registries.toml`: mirrors, what is blocked, what is insecure, and certificates, by host. What it
//! holds that we do not know is an error: a setting that is silently not in force is worse than none.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use microagent_image::{ClientCertificate, HostOptions, RegistryOptions, RegistryScope, Secret};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    config::Config,
    error::{Error, Result},
};

/// The largest file of settings or certificates, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    registry: BTreeMap<String, Host>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Host {
    mirrors: Vec<String>,
    blocked: bool,
    insecure: bool,
    /// PEM files; relative to this file.
    ca: Vec<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
}

/// How registries are reached, by the configuration.
pub(crate) fn options(config: &Config) -> Result<RegistryOptions> {
    let mut options = RegistryOptions::default();
    options
        .insecure_registries
        .clone_from(&config.insecure_registries);
    options.proxy.clone_from(&config.proxy);
    if let Some(path) = &config.registries_file {
        options.hosts = read(path)?;
    }
    Ok(options)
}

fn read(path: &Path) -> Result<BTreeMap<String, HostOptions>> {
    let wrong = |reason: String| Error::Settings {
        path: path.to_owned(),
        reason,
    };
    let text = bytes(path)?;
    let text = std::str::from_utf8(&text).map_err(|_| wrong("it is not UTF-8".into()))?;
    let settings = parse(text).map_err(wrong)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut hosts = BTreeMap::new();
    for (name, host) in settings.registry {
        let (key, mut options) = convert(&name, &host).map_err(wrong)?;
        for ca in &host.ca {
            options.roots.push(bytes(&directory.join(ca))?.to_vec());
        }
        if let (Some(chain), Some(key)) = (&host.client_cert, &host.client_key) {
            let key = bytes(&directory.join(key))?;
            let key = std::str::from_utf8(&key)
                .map_err(|_| wrong(format!("the key of {name} is not in PEM form")))?;
            options.client = Some(ClientCertificate {
                chain: bytes(&directory.join(chain))?.to_vec(),
                key: Secret::from(key),
            });
        }
        if hosts.insert(key.clone(), options).is_some() {
            return Err(wrong(format!("there are two sections for {key}")));
        }
    }
    Ok(hosts)
}

fn parse(text: &str) -> Result<Settings, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            let before = text.get(..span.start).unwrap_or_default();
            before.matches('\n').count() + 1
        });
        let reason = error.message().trim().replace('\n', " ");
        // The containers tools' file for the same is in TOML, too.
        let of_others = ["[[registry", "unqualified-search-registries", "short-name-mode"];
        match of_others.iter().any(|word| text.contains(word)) {
            true => format!(
                "line {line}: {reason}; this looks like the containers tools' registries.conf, which has another form: a section here is [registry.\"HOST\"]"
            ),
            false => format!("line {line}: {reason}"),
        }
    })
}

/// What a section says, but for the files it names.
fn convert(name: &str, host: &Host) -> Result<(String, HostOptions), String> {
    let bad = |error: microagent_image::ImageError| {
        format!(
            "in [registry.\"{name}\"]: {}",
            error.to_string().trim_end_matches('.')
        )
    };
    let scope = host_name(name).map_err(bad)?;
    let mut options = HostOptions::default();
    options.blocked = host.blocked;
    options.insecure = host.insecure;
    for mirror in &host.mirrors {
        options.mirrors.push(mirror.parse().map_err(bad)?);
    }
    if host.client_cert.is_some() != host.client_key.is_some() {
        return Err(format!(
            "in [registry.\"{name}\"]: client_cert and client_key go together"
        ));
    }
    Ok((scope, options))
}

/// A section is for a host, with or without a port. A host's name may have one label here: which of its
/// ports are meant is then left open.
fn host_name(name: &str) -> Result<String, microagent_image::ImageError> {
    let scope = match RegistryScope::from_key(name) {
        Some(scope) if !name.contains("://") => scope,
        _ => name.parse()?,
    };
    if scope.path().is_some() {
        return Err(microagent_image::ImageError::BadRegistry {
            input: name.to_owned(),
            reason: "a section is for a host, without a path".into(),
        });
    }
    Ok(scope.registry().to_owned())
}

fn bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let wrong = |reason: String| Error::Settings {
        path: path.to_owned(),
        reason,
    };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Reads settings and drops them, for fuzzing: whatever the text is, it returns.
pub(crate) fn fuzz(text: &str) {
    if let Ok(settings) = parse(text) {
        for (name, host) in &settings.registry {
            let _ = convert(name, host);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["lab.pem", "me.pem", "me.key"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let path = directory.path().join("registries.toml");
        fs::write(
            &path,
            r#"
            [registry."docker.io"]
            mirrors = ["mirror.example:5000/hub", "127.0.0.1:5001"]

            [registry."index.example"]
            blocked = true

            [registry."lab:5000"]
            insecure = true
            ca = ["lab.pem"]
            client_cert = "me.pem"
            client_key = "me.key"
            "#,
        )
        .unwrap();
        let hosts = read(&path).unwrap();
        let mirrors: Vec<String> = hosts["docker.io"]
            .mirrors
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(mirrors, ["mirror.example:5000/hub", "127.0.0.1:5001"]);
        assert!(hosts["index.example"].blocked);
        let lab = &hosts["lab:5000"];
        assert!(lab.insecure && lab.roots == [b"lab.pem".to_vec()]);
        assert_eq!(lab.client.as_ref().unwrap().key.expose(), "me.key");
    }

    #[test]
    fn what_the_document_shows_is_understood() {
        let page = include_str!("../../../../docs/registries.md");
        let (_, block) = page.split_once("```toml\n").unwrap();
        let (text, _) = block.split_once("```").unwrap();
        let settings = parse(text).unwrap();
        assert_eq!(settings.registry.len(), 3);
        for (name, host) in &settings.registry {
            convert(name, host).unwrap();
        }
    }

    #[test]
    fn faults_are_named_with_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.toml");
        for (text, reason) in [
            (
                "[registry.\"a.example\"]\nmirors = []",
                "line 2: unknown field `mirors`",
            ),
            ("[registies]", "line 1: unknown field"),
            (
                "[[registry]]\nlocation = \"a.example\"",
                "containers tools' registries.conf, which has another form",
            ),
            ("[registry.\"a.example\"\n", "line 1"),
            ("[registry.\"a.example\"]\nblocked = 1", "line 2"),
            ("[registry.\"https://a.example\"]", "leave out `https://`"),
            ("[registry.\"a.example/team\"]", "without a path"),
            (
                "[registry.\"a.example\"]\nmirrors = [\"x\"]",
                "write the full host name",
            ),
            (
                "[registry.\"a.example\"]\nclient_key = \"k\"",
                "go together",
            ),
            ("[registry.\"a.example\"]\nca = [\"gone.pem\"]", "gone.pem"),
            (
                "[registry.\"a.example\"]\n[registry.\"A.example\"]",
                "two sections",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("registries.toml")
        );
    }
}
