//! Credential files in the form of Docker's `config.json` and the containers tools' `auth.json`.

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD},
    },
};
use microagent_image::{Credential, RegistryScope, Secret};
use serde::Deserialize;
use zeroize::Zeroizing;

/// The largest file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 4 << 20;

/// Reads base64 with padding and without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// By which name Docker's own registry is kept, in files and by helpers.
const DOCKER_INDEX: &str = "https://index.docker.io/v1/";

/// What a file says of credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
struct Entry {
    /// `user:password` in base64.
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
    registrytoken: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(…)")
    }
}

/// A place in a file where a credential is, or may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The helper `docker-credential-NAME` is to be asked about `server`.
    Helper { name: String, server: String },
    /// It is in the file.
    Here(Credential),
    /// There is an entry that cannot be understood.
    Broken { key: String },
}

impl AuthFile {
    /// Reads a file's content. The reason of a failure never quotes it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("it is larger than {MAX_FILE} bytes"));
        }
        // Editors and shells of Windows begin a file so.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        // What the parser says of a value may hold the value.
        serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "it is not JSON in the form of Docker's config.json (line {}, column {})",
                error.line(),
                error.column()
            )
        })
    }

    /// Where credentials for `wanted` may be, in the order of asking: what names more of the path comes
    /// first, then a helper of its own, then the general one, then what stands in the file.
    pub(crate) fn places(&self, wanted: &RegistryScope) -> Vec<Place> {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (key, name) in self.cred_helpers.iter().flatten() {
            if let (Some(scope), Some(name)) = (covering(key, wanted), given(name)) {
                let server = server(&scope);
                let name = name.to_owned();
                places.push((scope.depth(), Place::Helper { name, server }));
            }
        }
        if let Some(name) = given(&self.creds_store) {
            let server = server(&wanted.whole());
            let name = name.to_owned();
            places.push((0, Place::Helper { name, server }));
        }
        for (key, entry) in self.auths.iter().flatten() {
            if let (Some(scope), Some(entry)) = (covering(key, wanted), entry) {
                let place = match entry.credential() {
                    Some(Ok(credential)) => Place::Here(credential),
                    Some(Err(())) => Place::Broken { key: key.clone() },
                    // Beside a helper, Docker keeps empty entries.
                    None => continue,
                };
                places.push((scope.depth(), place));
            }
        }
        // Stable, so that the order above holds among equals.
        places.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        places.into_iter().map(|(_, place)| place).collect()
    }

    /// The helper that keeps what is stored for `scope`, as this file has it.
    pub(crate) fn helper(&self, scope: &RegistryScope) -> Option<&str> {
        let own = self
            .cred_helpers
            .iter()
            .flatten()
            .filter_map(|(key, name)| Some((covering(key, scope)?.depth(), given(name)?)))
            .max_by_key(|(depth, _)| *depth)
            .map(|(_, name)| name);
        own.or(given(&self.creds_store))
    }
}

/// A helper's name; some tools leave an empty one, or `null`, where there is none.
fn given(name: &Option<String>) -> Option<&str> {
    name.as_deref().filter(|name| !name.is_empty())
}

fn covering(key: &str, wanted: &RegistryScope) -> Option<RegistryScope> {
    RegistryScope::from_key(key).filter(|scope| scope.covers(wanted))
}

/// By which name a helper knows `scope`.
pub(crate) fn server(scope: &RegistryScope) -> String {
    if scope.registry() == "docker.io" && scope.path().is_none() {
        return DOCKER_INDEX.to_owned();
    }
    scope.to_string()
}

impl Entry {
    fn credential(&self) -> Option<Result<Credential, ()>> {
        let given = |field: &Option<Zeroizing<String>>| {
            field
                .as_ref()
                .filter(|text| !text.is_empty())
                .map(|text| Secret::from(text.as_str()))
        };
        if let Some(token) = given(&self.identitytoken) {
            return Some(Ok(Credential::Identity(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Some(Ok(Credential::Bearer(token)));
        }
        if let (Some(username), Some(password)) = (&self.username, given(&self.password)) {
            return Some(Ok(Credential::Basic {
                username: username.clone(),
                password,
            }));
        }
        let auth = self.auth.as_ref().filter(|auth| !auth.is_empty())?;
        Some(user_and_password(auth).ok_or(()))
    }
}

fn user_and_password(auth: &str) -> Option<Credential> {
    // Whoever made it by hand has line breaks in it, or no padding.
    let mut auth = Zeroizing::new(auth.to_owned());
    auth.retain(|character| !character.is_ascii_whitespace());
    let decoded = Zeroizing::new(LENIENT.decode(auth.as_bytes()).ok()?);
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Credential::Basic {
        username: username.to_owned(),
        // Old tools padded it.
        password: Secret::from(password.trim_end_matches('\0')),
    })
}

/// The entry that [`AuthFile`] reads as this user and password.
pub(crate) fn entry(username: &str, password: &Secret) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
    Zeroizing::new(STANDARD.encode(pair.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(json: &str, wanted: &str) -> Vec<Place> {
        let wanted = RegistryScope::from_key(wanted).unwrap();
        AuthFile::parse(json.as_bytes()).unwrap().places(&wanted)
    }

    fn basic(username: &str, password: &str) -> Place {
        Place::Here(Credential::Basic {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn the_longest_key_wins_then_the_helper() {
        let json = r#"{"auths":{
            "r.example": {"auth": "YTpob3N0"},
            "r.example/team": {"auth": "YjpuYW1lc3BhY2U="},
            "r.example/team/app": {"username": "c", "password": "repository"},
            "r.example/te": {"auth": "eDp4"},
            "https://index.docker.io/v1/": {"auth": "ZDpodWI="},
            "empty.example": {}, "null.example": null,
            "i.example": {"auth": "dTo=", "identitytoken": "id"},
            "t.example": {"registrytoken": "tok"},
            "bad.example": {"auth": "%%"}
        }, "HttpHeaders": {"x": "y"}}"#;
        for (wanted, expect) in [
            (
                "r.example/team/app",
                &[
                    basic("c", "repository"),
                    basic("b", "namespace"),
                    basic("a", "host"),
                ][..],
            ),
            (
                "r.example/team/other",
                &[basic("b", "namespace"), basic("a", "host")],
            ),
            ("r.example/teams/x", &[basic("a", "host")]),
            ("docker.io/library/debian", &[basic("d", "hub")]),
            ("empty.example/x", &[]),
            ("null.example/x", &[]),
            (
                "i.example/x",
                &[Place::Here(Credential::Identity("id".into()))],
            ),
            (
                "t.example/x",
                &[Place::Here(Credential::Bearer("tok".into()))],
            ),
            (
                "bad.example/x",
                &[Place::Broken {
                    key: "bad.example".into(),
                }],
            ),
            ("none.example/x", &[]),
        ] {
            assert_eq!(places(json, wanted), expect, "{wanted}");
        }
        for auth in ["YWxpY2U6cHc=", "YWxpY2U6cHc", "YWxp\\nY2U6cHc=\\r\\n"] {
            let json = format!(
                "\u{feff}{{\"auths\": {{\"r.example\": {{\"auth\": \"{auth}\"}}}}, \"credHelpers\": {{\"r.example\": null, \"gcr.io\": \"\"}}}}"
            );
            assert_eq!(
                places(&json, "r.example/x"),
                [basic("alice", "pw")],
                "{auth}"
            );
            assert_eq!(places(&json, "gcr.io/x"), []);
        }
        let json = r#"{"auths": {"r.example": {"auth": "YTpi"}, "r.example/ns": {"auth": "Yzpk"}},
            "credsStore": "all", "credHelpers": {"r.example": "own", "r.example/deep/er": "deep"}}"#;
        let helper = |name: &str, server: &str| Place::Helper {
            name: name.into(),
            server: server.into(),
        };
        assert_eq!(
            places(json, "r.example/ns/x"),
            [
                basic("c", "d"),
                helper("own", "r.example"),
                helper("all", "r.example"),
                basic("a", "b")
            ]
        );
        assert_eq!(
            places(json, "r.example/deep/er/x")[0],
            helper("deep", "r.example/deep/er")
        );
        assert_eq!(
            places(json, "docker.io/library/x"),
            [helper("all", DOCKER_INDEX)]
        );
    }

    #[test]
    fn what_is_broken_is_not_quoted() {
        for json in [
            r#"{"auths": {"r": "hunter2"}}"#,
            r#"{"auths": {"r": {"auth": ["hunter2"]}}}"#,
            "hunter2",
            r#"{"credsStore": {"hunter2": 1}}"#,
        ] {
            let error = AuthFile::parse(json.as_bytes()).unwrap_err();
            assert!(
                error.contains("line 1") && !error.contains("hunter2"),
                "{error}"
            );
        }
        let file =
            AuthFile::parse(br#"{"auths": {"r.example": {"auth": "dTpodW50ZXIy"}}}"#).unwrap();
        assert!(!format!("{file:?}").contains("unter2"));
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(username in "[^:\0]{1,20}", password in "[^\0]{1,20}") {
            let entry = entry(&username, &Secret::from(password.as_str()));
            let read = user_and_password(&entry).unwrap();
            prop_assert_eq!(read, Credential::Basic { username, password: password.into() });
        }
    }
}
