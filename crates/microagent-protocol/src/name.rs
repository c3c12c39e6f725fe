//! Workspace names: what a user types, and a directory and host name are made of.

use serde::{Deserialize, Serialize};

/// A workspace's name: 1 to 63 of `a-z`, `0-9` and `-`, starting and ending
/// with a letter or digit. It is a valid host name and a safe file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")))]
#[serde(try_from = "String", into = "String")]
pub struct WorkspaceName(String);

impl WorkspaceName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a workspace name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not a workspace name: {reason}; use 1 to 63 of a-z, 0-9 and '-', \
     starting and ending with a letter or digit"
)]
pub struct InvalidName {
    input: String,
    reason: &'static str,
}

impl TryFrom<String> for WorkspaceName {
    type Error = InvalidName;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let reason = if input.is_empty() {
            "it is empty"
        } else if input.len() > Self::MAX_LEN {
            "it is too long"
        } else if !input
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        {
            "it has a character that is not allowed"
        } else if !edge(input.chars().next()) || !edge(input.chars().last()) {
            "it starts or ends with '-'"
        } else {
            return Ok(Self(input));
        };
        Err(InvalidName {
            input: input.chars().take(80).collect(),
            reason,
        })
    }
}

impl std::str::FromStr for WorkspaceName {
    type Err = InvalidName;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        input.to_owned().try_into()
    }
}

impl From<WorkspaceName> for String {
    fn from(name: WorkspaceName) -> Self {
        name.0
    }
}

impl std::fmt::Display for WorkspaceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_and_file_names() {
        for good in ["a", "agent-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<WorkspaceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a/b",
            "..",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_in_json_is_refused() {
        assert!(serde_json::from_str::<WorkspaceName>("\"../etc\"").is_err());
    }
}
