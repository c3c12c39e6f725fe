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
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
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
#[derive(Debug, Default)]
pub(crate) struct AuthFile {
    auths: BTreeMap<String, Value<Entry>>,
    creds_store: Value<String>,
    cred_helpers: BTreeMap<String, Value<String>>,
}

/// What stands somewhere in a file. One registry's entry that is not as it should be is no fault of the others.
#[derive(Debug, Default)]
enum Value<T> {
    /// Nothing, or `null`.
    #[default]
    Nothing,
    Good(T),
    Bad,
}

impl<T: DeserializeOwned> Value<T> {
    fn read(written: &RawValue) -> Self {
        match serde_json::from_str(written.get()) {
            Ok(Some(value)) => Self::Good(value),
            Ok(None) => Self::Nothing,
            Err(_) => Self::Bad,
        }
    }

    fn read_all(written: Option<BTreeMap<String, &RawValue>>) -> BTreeMap<String, Self> {
        let all = written.into_iter().flatten();
        all.map(|(key, value)| (key, Self::read(value))).collect()
    }
}

/// A file, as far as all of it has one form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(default, borrow)]
    auths: Option<BTreeMap<String, &'a RawValue>>,
    #[serde(default, borrow)]
    creds_store: Option<&'a RawValue>,
    #[serde(default, borrow)]
    cred_helpers: Option<BTreeMap<String, &'a RawValue>>,
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
    /// There is an entry that cannot be understood, because it is not `form`.
    Broken { key: String, form: &'static str },
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
        let written: Written<'_> = serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "it is not JSON in the form of Docker's config.json (line {}, column {})",
                error.line(),
                error.column()
            )
        })?;
        Ok(Self {
            auths: Value::read_all(written.auths),
            creds_store: written.creds_store.map(Value::read).unwrap_or_default(),
            cred_helpers: Value::read_all(written.cred_helpers),
        })
    }

    /// Where credentials for `wanted` may be, in the order of asking: what names more of the path comes
    /// first, then a helper of its own, then the general one, then what stands in the file.
    pub(crate) fn places(&self, wanted: &RegistryScope) -> Vec<Place> {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (key, name) in &self.cred_helpers {
            if let Some(scope) = covering(key, wanted) {
                let place = by_helper(name, key, server(&scope));
                places.extend(place.map(|place| (scope.depth(), place)));
            }
        }
        let general = by_helper(&self.creds_store, "credsStore", server(&wanted.whole()));
        places.extend(general.map(|place| (0, place)));
        for (key, entry) in &self.auths {
            if let Some(scope) = covering(key, wanted) {
                let broken = |form| Place::Broken {
                    key: key.clone(),
                    form,
                };
                let place = match entry {
                    Value::Nothing => continue,
                    Value::Bad => broken("an entry as Docker writes it"),
                    Value::Good(entry) => match entry.credential() {
                        Some(Ok(credential)) => Place::Here(credential),
                        Some(Err(())) => broken("user:password in base64"),
                        // Beside a helper, Docker keeps empty entries.
                        None => continue,
                    },
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
            .filter_map(|(key, name)| Some((covering(key, scope)?.depth(), given(name)?)))
            .max_by_key(|(depth, _)| *depth)
            .map(|(_, name)| name);
        own.or(given(&self.creds_store))
    }
}

/// A helper's name; some tools leave an empty one, or `null`, where there is none.
fn given(name: &Value<String>) -> Option<&str> {
    match name {
        Value::Good(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}

fn by_helper(name: &Value<String>, key: &str, server: String) -> Option<Place> {
    match name {
        Value::Bad => Some(Place::Broken {
            key: key.to_owned(),
            form: "the name of a helper",
        }),
        _ => given(name).map(|name| Place::Helper {
            name: name.to_owned(),
            server,
        }),
    }
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
                    form: "user:password in base64",
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
            r#"{"auths": ["hunter2"]}"#,
            r#"{"auths": {"r": {"auth": "hunter2}}}"#,
            "hunter2",
            r#"{"credHelpers": "hunter2"}"#,
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

    #[test]
    fn what_is_broken_is_no_fault_of_the_others() {
        let json = r#"{"auths": {"r.example": "hunter2", "s.example": {"auth": ["hunter2"]},
                "good.example": {"auth": "YTpi"}},
            "credsStore": {"hunter2": 1}, "credHelpers": {"h.example": 7, "own.example": "own"}}"#;
        let broken = |key: &str, form| Place::Broken {
            key: key.into(),
            form,
        };
        let helper = "the name of a helper";
        let general = || broken("credsStore", helper);
        for (wanted, first) in [
            (
                "r.example/x",
                broken("r.example", "an entry as Docker writes it"),
            ),
            (
                "s.example/x",
                broken("s.example", "an entry as Docker writes it"),
            ),
            ("h.example/x", broken("h.example", helper)),
            ("other.example/x", general()),
        ] {
            let places = places(json, wanted);
            assert!(places.contains(&first), "{wanted}: {places:?}");
        }
        assert!(places(json, "good.example/x").contains(&basic("a", "b")));
        let file = AuthFile::parse(json.as_bytes()).unwrap();
        assert!(!format!("{file:?}").contains("hunter2"));
        let own: RegistryScope = "own.example".parse().unwrap();
        assert_eq!(file.helper(&own), Some("own"));
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
