//! Image names as container users write them, and the one full form each stands for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::error::ImageError;

/// The registry a name without one belongs to.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
/// The repository prefix of one-word names in the default registry.
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name (registry included) the distribution grammar allows, in bytes.
const MAX_NAME: usize = 255;

/// A parsed image reference: registry, repository, and a tag, a digest or both.
///
/// ```
/// use microagent_image::Reference;
/// let reference: Reference = "debian:12".parse()?;
/// assert_eq!(reference.canonical(), "docker.io/library/debian:12");
/// assert_eq!(reference.to_string(), "debian:12");
/// # Ok::<(), microagent_image::ImageError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and optional port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside its registry: `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither a tag nor a digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where one was written; it decides, whatever the tag says.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The full form: `docker.io/library/debian:12`.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.with_suffix(format!("{}/{}", self.registry, self.repository))
    }

    /// The short form people type: `debian:12`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let name = if self.registry == DEFAULT_REGISTRY {
            match self.repository.strip_prefix(OFFICIAL) {
                Some(word) if !word.contains('/') => word.to_owned(),
                _ => self.repository.clone(),
            }
        } else {
            format!("{}/{}", self.registry, self.repository)
        };
        self.with_suffix(name)
    }

    /// The same repository, pinned to `digest` instead of a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The short form with another tag.
    pub(crate) fn with_tag(&self, tag: &str) -> String {
        let other = Self {
            tag: Some(tag.to_owned()),
            ..self.clone()
        };
        other.familiar()
    }

    /// The short form in another repository of the same registry.
    pub(crate) fn with_repository(&self, repository: &str) -> String {
        let other = Self {
            repository: repository.to_owned(),
            ..self.clone()
        };
        other.familiar()
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::BadReference {
            input: crate::error::clip(text),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty; write a name such as `debian:12`".into());
    }
    if text.len() > MAX_NAME + 1 + 128 + 1 + 71 {
        return Err("it is too long".into());
    }
    if let Some(scheme) = text.find("://") {
        return Err(format!("it is a URL; leave out `{}`", &text[..scheme + 3]));
    }
    if let Some(bad) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("it contains {bad:?}"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>().map_err(|error| {
                let error = error.to_string();
                format!("its digest is malformed: {}", error.trim_end_matches('.'))
            })?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') && !rest.ends_with(']') => {
            (&rest[..colon], Some(&rest[colon + 1..]))
        }
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    if let Some(registry) = registry {
        check_registry(registry)?;
    }
    let registry = match registry {
        None => DEFAULT_REGISTRY,
        // A host's name is the same in capitals. Others are kept as they are written: that may be what tells
        // that they are hosts.
        Some(other)
            if [DEFAULT_REGISTRY, "index.docker.io"]
                .iter()
                .any(|name| other.eq_ignore_ascii_case(name)) =>
        {
            DEFAULT_REGISTRY
        }
        Some(other) => other,
    };
    check_repository(repository)?;
    if Digest::from_hex(repository).is_some() {
        return Err("it is 64 hex digits, which would be taken for a digest; write `sha256:` before an image's digest".into());
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("{OFFICIAL}{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(format!("its name is longer than {MAX_NAME} bytes"));
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// The first component is a registry when it cannot be part of a repository name: Docker's rule.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

pub(crate) fn check_registry(registry: &str) -> Result<(), String> {
    let fault = |why: &str| Err(format!("its registry `{registry}` {why}"));
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return fault("has an unclosed `[`");
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return fault("is not an IPv6 address in brackets");
        }
        match port {
            "" => (None, None),
            port => match port.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None => return fault("has something other than a port after `]`"),
            },
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if let Some(host) = host {
        let good = !host.is_empty()
            && host.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            });
        if !good {
            return fault("is not a host name");
        }
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || port.starts_with('+') => {
            fault("has a port that is not a number below 65536")
        }
        _ => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("its tag is empty".into());
    }
    if tag.len() > 128 {
        return Err("its tag is longer than 128 characters".into());
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let first = bytes.next().is_some_and(word);
    if !first || !bytes.all(|b| word(b) || matches!(b, b'.' | b'-')) {
        return Err(format!(
            "its tag `{tag}` may hold only letters, digits, `_`, `.` and `-`, and starts with none of the last two"
        ));
    }
    Ok(())
}

pub(crate) fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("its repository name is empty".into());
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "its repository name `{repository}` has upper-case letters; write `{}`",
            repository.to_ascii_lowercase()
        ));
    }
    for component in repository.split('/') {
        if component.is_empty() {
            return Err(format!(
                "its repository name `{repository}` has an empty component"
            ));
        }
        if !good_component(component) {
            return Err(format!(
                "its component `{component}` is malformed; lower-case letters and digits, joined by `.`, `_`, `__` or dashes"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)*`
fn good_component(component: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(first)
        && alnum(last)
        && bytes
            .split(alnum)
            .filter(|separator| !separator.is_empty())
            .all(|separator| {
                matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
            })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.canonical())
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn familiar_and_canonical_forms() {
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            (
                "docker.io/library/ubuntu:24.04",
                "docker.io/library/ubuntu:24.04",
                "ubuntu:24.04",
            ),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("a/b:c", "docker.io/a/b:c", "a/b:c"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "localhost:5000/x:1",
                "localhost:5000/x:1",
                "localhost:5000/x:1",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            (
                "r.example/a__b/c--d.e_f:T.a-g",
                "r.example/a__b/c--d.e_f:T.a-g",
                "r.example/a__b/c--d.e_f:T.a-g",
            ),
            ("FOO/bar", "FOO/bar:latest", "FOO/bar:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.canonical(), canonical, "{text}");
            assert_eq!(reference.to_string(), familiar, "{text}");
        }
        let pinned: Reference = format!("localhost:5000/x@{D}").parse().unwrap();
        assert_eq!(
            (pinned.tag(), pinned.digest().unwrap().to_string().as_str()),
            (None, D)
        );
        let both: Reference = format!("x:1@{D}").parse().unwrap();
        assert_eq!(both.canonical(), format!("docker.io/library/x:1@{D}"));
    }

    #[test]
    fn faults_are_named() {
        for (text, reason) in [
            ("", "empty"),
            ("Debian", "write `debian`"),
            ("https://x/y", "URL"),
            ("x:", "tag is empty"),
            ("x:-a", "tag `-a`"),
            ("x y", "' '"),
            ("x@sha256:12", "digest is malformed"),
            ("a//b", "empty component"),
            ("a/../b", "component `..`"),
            ("-a", "component `-a`"),
            ("a..b", "component `a..b`"),
            ("a___b", "component"),
            ("host:99999/x", "port"),
            ("ho_st.x/y", "host name"),
            ("[::1/x", "unclosed"),
            (&"a".repeat(300), "longer than 255"),
            (&D[7..], "64 hex digits"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn every_form_reads_back(text in "([a-z0-9]{1,5}(\\.[a-z]{1,4})?(:[0-9]{1,4})?/)?[a-z0-9]{1,6}([._-][a-z0-9]{1,3})?(:[A-Za-z0-9_][\\w.-]{0,8})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.canonical().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
