//! A registry or a part of one: what credentials and settings are kept for.

use std::fmt;
use std::str::FromStr;

use crate::error::{ImageError, clip};
use crate::reference::{DEFAULT_REGISTRY, Reference, check_registry, check_repository};

/// A registry, a namespace of it, or one repository: `docker.io`, `r.example:5000/team`,
/// `r.example/team/app`.
///
/// ```
/// use microagent_image::RegistryScope;
/// let team: RegistryScope = "r.example/team".parse()?;
/// let app: RegistryScope = "r.example/team/app".parse()?;
/// assert!(team.covers(&app) && !app.covers(&team));
/// # Ok::<(), microagent_image::ImageError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryScope {
    registry: String,
    /// Empty for the whole registry.
    path: String,
}

impl RegistryScope {
    /// The repository of an image.
    #[must_use]
    pub fn of(reference: &Reference) -> Self {
        Self::new(reference.registry(), reference.repository())
    }

    fn new(registry: &str, path: &str) -> Self {
        let registry = registry.to_ascii_lowercase();
        let registry = match registry.as_str() {
            // The hosts behind the default registry, by which older tools call it.
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
            _ => registry,
        };
        Self {
            registry,
            path: path.to_owned(),
        }
    }

    /// Reads a key of a credential file, in any form that tools have written: `r.example:5000`,
    /// `r.example/team`, `https://index.docker.io/v1/`. What is none of them is nobody's.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        let (is_url, rest) = match key.split_once("://") {
            Some(("https" | "http", rest)) => (true, rest),
            Some(_) => return None,
            None => (false, key),
        };
        let (registry, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_registry(registry).ok()?;
        let path = path.trim_end_matches('/');
        // A URL's path is that of an API, and names no namespace.
        if is_url || matches!(path, "" | "v1" | "v2") {
            return Some(Self::new(registry, ""));
        }
        check_repository(path).ok()?;
        Some(Self::new(registry, path))
    }

    /// Host and optional port.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// What is meant of the registry; `None` is all of it.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        (!self.path.is_empty()).then_some(&self.path)
    }

    /// The registry that this is, or is a part of.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self::new(&self.registry, "")
    }

    /// The repository of this name below this.
    pub(crate) fn join(&self, repository: &str) -> Self {
        match self.path() {
            Some(path) => Self::new(&self.registry, &format!("{path}/{repository}")),
            None => Self::new(&self.registry, repository),
        }
    }

    /// Whether `other` is this or a part of it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.registry == other.registry
            && match other.path.strip_prefix(&self.path) {
                Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
                None => false,
            }
    }

    /// How many path components it names: of two scopes that cover something, the deeper one is meant.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.path.split('/').filter(|part| !part.is_empty()).count()
    }
}

impl fmt::Display for RegistryScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.registry)?;
        match self.path() {
            Some(path) => write!(f, "/{path}"),
            None => Ok(()),
        }
    }
}

impl FromStr for RegistryScope {
    type Err = ImageError;

    /// Reads what a person writes: unlike [`from_key`](Self::from_key), faults are named.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let fault = |reason: String| ImageError::BadRegistry {
            input: clip(text),
            reason,
        };
        if text.is_empty() {
            return Err(fault(
                "it is empty; write a host name such as `ghcr.io`".into(),
            ));
        }
        if let Some(scheme) = text.find("://") {
            return Err(fault(format!(
                "it is a URL; leave out `{}`",
                clip(&text[..scheme + 3])
            )));
        }
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        check_registry(registry).map_err(|reason| fault(clip(&reason)))?;
        // An image's name would be read the same way: see `Reference`.
        if !registry.contains(['.', ':'])
            && registry != "localhost"
            && !registry.bytes().any(|byte| byte.is_ascii_uppercase())
        {
            return Err(fault(format!(
                "in an image's name `{registry}` is a part of {DEFAULT_REGISTRY}; write the full host name or a port"
            )));
        }
        if !path.is_empty() {
            check_repository(path).map_err(|reason| fault(clip(&reason)))?;
        }
        Ok(Self::new(registry, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_every_tool() {
        for (key, expect) in [
            ("r.example", Some("r.example")),
            ("R.Example:5000", Some("r.example:5000")),
            ("https://r.example:5000/v1/", Some("r.example:5000")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("registry-1.docker.io", Some("docker.io")),
            ("index.docker.io/v1/", Some("docker.io")),
            ("docker.io/library/debian", Some("docker.io/library/debian")),
            ("r.example/team/", Some("r.example/team")),
            ("ftp://r.example", None),
            ("", None),
            ("a b", None),
            ("r.example/Team", None),
        ] {
            let scope = RegistryScope::from_key(key);
            assert_eq!(
                scope.map(|scope| scope.to_string()).as_deref(),
                expect,
                "{key}"
            );
        }
    }

    #[test]
    fn a_scope_covers_whole_components() {
        let scope = |key: &str| RegistryScope::from_key(key).unwrap();
        for (outer, inner, expect) in [
            ("r.example", "r.example/a/b", true),
            ("r.example/a", "r.example/a/b", true),
            ("r.example/a/b", "r.example/a/b", true),
            ("r.example/a", "r.example/ab", false),
            ("r.example/a/b", "r.example/a", false),
            ("r.example", "r.example:5000", false),
            ("example", "r.example", false),
        ] {
            assert_eq!(
                scope(outer).covers(&scope(inner)),
                expect,
                "{outer} {inner}"
            );
        }
        assert_eq!(scope("r.example/a/b").depth(), 2);
    }

    #[test]
    fn faults_are_named() {
        for (text, reason) in [
            ("", "empty"),
            ("https://r.example", "leave out `https://`"),
            ("lab", "part of docker.io"),
            ("r.example:x", "port"),
            ("r.example/Team", "write `team`"),
        ] {
            let error = text.parse::<RegistryScope>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!("localhost".parse::<RegistryScope>().unwrap().depth(), 0);
    }

    proptest! {
        #[test]
        fn keys_never_panic_and_read_back(key in ".{0,60}") {
            if let Some(scope) = RegistryScope::from_key(&key) {
                prop_assert_eq!(RegistryScope::from_key(&scope.to_string()), Some(scope));
            }
        }
    }
}
