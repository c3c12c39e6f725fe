//! Where a copy comes from and goes to, as it is written.

use std::{ffi::OsStr, path::PathBuf, str::FromStr};

use microagent_host::fs::name_of;
use microagent_protocol::{CopyPath, WorkspaceName};

/// One end of a copy.
///
/// ```
/// use microagent::Endpoint;
///
/// assert!(matches!("agent:/srv/data".parse(), Ok(Endpoint::Workspace { .. })));
/// assert!(matches!("./agent:file".parse(), Ok(Endpoint::Host { .. })));
/// assert!(matches!("-".parse(), Ok(Endpoint::Stream)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// In a workspace: `NAME:/PATH`.
    Workspace {
        /// The workspace.
        name: WorkspaceName,
        /// Where in it.
        path: CopyPath,
        /// How the path ended.
        ending: Ending,
    },
    /// On this host: a path. One with a colon before its first slash is written `./a:b`.
    Host {
        /// The path.
        path: PathBuf,
        /// How it ended.
        ending: Ending,
    },
    /// A tar stream of the caller: `-`.
    Stream,
}

/// How a path ended, which says what is meant by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// `dir`: the thing itself.
    #[default]
    Plain,
    /// `dir/`: a directory.
    Slash,
    /// `dir/.`: what is in the directory.
    Contents,
}

/// A text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is no place to copy from or to: {reason}")]
pub struct InvalidEndpoint {
    input: String,
    reason: String,
}

impl Endpoint {
    /// Reads an endpoint that need not be UTF-8.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    pub fn parse(text: &OsStr) -> Result<Self, InvalidEndpoint> {
        let bytes = text.as_encoded_bytes();
        let invalid = |reason: String| InvalidEndpoint {
            input: text.to_string_lossy().chars().take(200).collect(),
            reason,
        };
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        if bytes.is_empty() {
            return Err(invalid("it is empty".to_owned()));
        }
        let colon = bytes
            .iter()
            .position(|byte| matches!(byte, b':' | b'/'))
            .filter(|at| bytes[*at] == b':');
        let Some(colon) = colon else {
            let (path, ending) = ending(bytes);
            let path = name_of(path).into();
            return Ok(Self::Host { path, ending });
        };
        let text = text
            .to_str()
            .ok_or_else(|| invalid("a path in a workspace must be UTF-8".to_owned()))?;
        let (name, path) = (&text[..colon], &text[colon + 1..]);
        let name = name
            .parse()
            .map_err(|error: microagent_protocol::name::InvalidName| invalid(error.to_string()))?;
        let (path, ending) = ending(path.as_bytes());
        let path = String::from_utf8_lossy(path).parse().map_err(
            |error: microagent_protocol::copy::InvalidCopyPath| invalid(error.to_string()),
        )?;
        Ok(Self::Workspace { name, path, ending })
    }

    pub(super) fn is_workspace(&self) -> bool {
        matches!(self, Self::Workspace { .. })
    }
}

/// The path without what only says how it is meant.
fn ending(path: &[u8]) -> (&[u8], Ending) {
    if path == b"." {
        return (path, Ending::Contents);
    }
    let (path, ending) = match path.strip_suffix(b"/.") {
        Some(path) => (path, Ending::Contents),
        None if path.ends_with(b"/") => (path, Ending::Slash),
        None => (path, Ending::Plain),
    };
    let end = path.iter().rposition(|byte| *byte != b'/');
    match end {
        Some(end) => (&path[..=end], ending),
        None if ending == Ending::Plain => (path, ending),
        None => (b"/", ending),
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(OsStr::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_apart() {
        let parse = |text: &str| text.parse::<Endpoint>().unwrap();
        assert_eq!(parse("-"), Endpoint::Stream);
        for (text, shown, how) in [
            ("a", "a", Ending::Plain),
            ("a/", "a", Ending::Slash),
            ("a//", "a", Ending::Slash),
            ("a/.", "a", Ending::Contents),
            (".", ".", Ending::Contents),
            ("./.", ".", Ending::Contents),
            ("..", "..", Ending::Plain),
            ("/", "/", Ending::Slash),
            ("/.", "/", Ending::Contents),
            ("./a:/b", "./a:/b", Ending::Plain),
            ("/a:b", "/a:b", Ending::Plain),
            ("--", "--", Ending::Plain),
        ] {
            let Endpoint::Host { path, ending } = parse(text) else {
                panic!("{text}");
            };
            assert_eq!((path.to_str().unwrap(), ending), (shown, how), "{text}");
        }
        for (text, shown, how) in [
            ("ws:/a", "/a", Ending::Plain),
            ("ws:/a/b/", "/a/b", Ending::Slash),
            ("ws:/", "/", Ending::Slash),
            ("ws:/.", "/", Ending::Contents),
            ("ws:/a/.", "/a", Ending::Contents),
            ("ws:/a b:c", "/a b:c", Ending::Plain),
        ] {
            let Endpoint::Workspace { name, path, ending } = parse(text) else {
                panic!("{text}");
            };
            assert_eq!(
                (name.as_str(), path.as_str(), ending),
                ("ws", shown, how),
                "{text}"
            );
        }
        for bad in ["", "ws:a", "WS:/a", ":/a", "ws:/a/../b", "a b:/c"] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
