//! Copying files between a host and a guest: what is asked for, and how it ended.
//!
//! A copy is one session with one tar stream. Out of the guest it is [`FrameKind::Stdout`] frames,
//! into it [`FrameKind::Stdin`] frames with [`FrameKind::StdinEof`] behind them. In both directions
//! the agent's [`FrameKind::Exit`] frame, holding a [`CopyEnd`], is the last one: a stream without
//! it was cut. Whoever receives the tar stream trusts nothing in it.
//!
//! [`FrameKind::Stdout`]: crate::FrameKind::Stdout
//! [`FrameKind::Stdin`]: crate::FrameKind::Stdin
//! [`FrameKind::StdinEof`]: crate::FrameKind::StdinEof
//! [`FrameKind::Exit`]: crate::FrameKind::Exit

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::supervisor::ErrorKind;

/// An absolute path in a guest, which may be its root: no NUL, no `.` or `..` components, at most
/// 4,095 bytes, no slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("pattern" = "^/", "maxLength" = 4095)))]
#[serde(try_from = "String", into = "String")]
pub struct CopyPath(String);

impl CopyPath {
    /// The path as text; the root is `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component; the root has none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.rsplit('/').next().filter(|name| !name.is_empty())
    }
}

/// A text that is no path of a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a path of a guest: {reason}")]
pub struct InvalidCopyPath {
    input: String,
    reason: &'static str,
}

impl TryFrom<String> for CopyPath {
    type Error = InvalidCopyPath;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        let parts = || input.split('/').filter(|part| !part.is_empty());
        let reason = if !input.starts_with('/') {
            "it is not absolute; write it from the root, such as /data"
        } else if input.len() > 4095 {
            "it is longer than 4,095 bytes"
        } else if input.contains('\0') {
            "it has a NUL byte"
        } else if parts().any(|part| part == "." || part == "..") {
            "it has a . or .. in it"
        } else {
            let path: String = parts().flat_map(|part| ["/", part]).collect();
            return Ok(Self(if path.is_empty() { "/".into() } else { path }));
        };
        Err(InvalidCopyPath {
            input: input.chars().take(200).collect(),
            reason,
        })
    }
}

impl FromStr for CopyPath {
    type Err = InvalidCopyPath;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        input.to_owned().try_into()
    }
}

impl From<CopyPath> for String {
    fn from(path: CopyPath) -> Self {
        path.0
    }
}

impl fmt::Display for CopyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What of a source is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CopyWhat {
    /// What is in the directory instead of the directory (`dir/.`).
    #[serde(default)]
    pub contents: bool,
    /// What a symbolic link at the end of the path leads to instead of the link.
    #[serde(default)]
    pub follow: bool,
}

/// Packs something of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CopyOut {
    /// What.
    pub path: CopyPath,
    /// What of it.
    #[serde(flatten)]
    pub what: CopyWhat,
}

/// Lands a tar stream in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CopyIn {
    /// Where.
    pub path: CopyPath,
    /// How.
    pub landing: Landing,
}

/// What a stream holds, seen by whoever lands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Shipment {
    /// One file or tree under its own name. It goes into the destination if that is a directory,
    /// and becomes the destination otherwise.
    Named,
    /// What is in a directory. It goes into the destination, which is made if it is missing.
    Contents,
    /// Any archive. It goes into the destination, which must be a directory.
    Archive,
}

/// How a stream is landed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Landing {
    /// What comes.
    pub shipment: Shipment,
    /// Whether the destination must be a directory (it was written with a slash at its end).
    #[serde(default)]
    pub into_directory: bool,
    /// Whether missing directories above the destination are made.
    #[serde(default)]
    pub parents: bool,
    /// The owner of everything, instead of the stream's.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The mode of every file, instead of the stream's.
    #[serde(default)]
    pub mode: Option<FileMode>,
}

impl Landing {
    /// As the stream says.
    #[must_use]
    pub fn new(shipment: Shipment) -> Self {
        Self {
            shipment,
            into_directory: false,
            parents: false,
            owner: None,
            mode: None,
        }
    }
}

/// An owner by numbers, written `UID` or `UID:GID`; the group is the user's number if it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A text that is no owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an owner; write numbers, UID or UID:GID (1000:1000)")]
pub struct InvalidOwner(String);

impl FromStr for Owner {
    type Err = InvalidOwner;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = input.split_once(':').unwrap_or((input, input));
        let number = |text: &str| match text.parse() {
            // The last number means "leave it" to the system.
            Ok(id) if id != u32::MAX && !text.starts_with('+') => Ok(id),
            _ => Err(InvalidOwner(input.chars().take(100).collect())),
        };
        Ok(Self {
            uid: number(uid)?,
            gid: number(gid)?,
        })
    }
}

/// Permission bits, written in octal. Directories get search permission for whoever may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("maximum" = 0o7777)))]
#[serde(try_from = "u16", into = "u16")]
pub struct FileMode(u16);

impl FileMode {
    /// For a file.
    #[must_use]
    pub fn file(self) -> u16 {
        self.0
    }

    /// For a directory.
    #[must_use]
    pub fn directory(self) -> u16 {
        self.0 | (self.0 & 0o444) >> 2
    }
}

/// Not a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a mode; write 3 or 4 octal digits (644, 0755)")]
pub struct InvalidMode(String);

impl TryFrom<u16> for FileMode {
    type Error = InvalidMode;

    fn try_from(bits: u16) -> Result<Self, Self::Error> {
        if bits <= 0o7777 {
            Ok(Self(bits))
        } else {
            Err(InvalidMode(format!("{bits:o}")))
        }
    }
}

impl From<FileMode> for u16 {
    fn from(mode: FileMode) -> Self {
        mode.0
    }
}

impl FromStr for FileMode {
    type Err = InvalidMode;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMode(input.chars().take(100).collect());
        if !matches!(input.len(), 3 | 4) || !input.bytes().all(|b| matches!(b, b'0'..=b'7')) {
            return Err(invalid());
        }
        u16::from_str_radix(input, 8)
            .map_err(|_| invalid())?
            .try_into()
    }
}

/// What a copy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CopyReport {
    /// How many files, links and special files.
    pub files: u64,
    /// How many directories.
    pub directories: u64,
    /// The bytes of the files, holes included.
    pub bytes: u64,
    /// How many files were left out.
    pub skipped: u64,
    /// The first [`CopyReport::MAX_NOTICES`] of them, each with the reason.
    #[serde(default)]
    pub notices: Vec<String>,
}

impl CopyReport {
    /// The most notices of one report.
    pub const MAX_NOTICES: usize = 20;

    /// Takes note of something that was left out.
    pub fn skip(&mut self, notice: impl FnOnce() -> String) {
        self.skipped += 1;
        if self.notices.len() < Self::MAX_NOTICES {
            self.notices.push(notice());
        }
    }

    /// Takes over what another one left out.
    pub fn absorb_skipped(&mut self, other: Self) {
        self.skipped = self.skipped.saturating_add(other.skipped);
        let room = Self::MAX_NOTICES.saturating_sub(self.notices.len());
        self.notices.extend(other.notices.into_iter().take(room));
    }
}

/// The payload of a copy's exit frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "copy", rename_all = "snake_case")]
pub enum CopyEnd {
    /// All of it.
    Done(CopyReport),
    /// Not all of it.
    Failed {
        /// For programs.
        kind: ErrorKind,
        /// For people, naming the file.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain_and_may_be_the_root() {
        for (text, path, name) in [
            ("/", "/", None),
            ("///", "/", None),
            ("/a//b/", "/a/b", Some("b")),
            ("/ä b", "/ä b", Some("ä b")),
        ] {
            let read: CopyPath = text.parse().unwrap();
            assert_eq!((read.as_str(), read.name()), (path, name));
        }
        let long = "/x".repeat(2048);
        for bad in ["", "a", "/a/../b", "/.", "/a\0", &long] {
            assert!(bad.parse::<CopyPath>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<CopyPath>("\"/../x\"").is_err());
    }

    #[test]
    fn owners_and_modes_are_numbers() {
        let owner = |text: &str| text.parse::<Owner>().map(|owner| (owner.uid, owner.gid));
        assert_eq!(owner("1000"), Ok((1000, 1000)));
        assert_eq!(owner("0:5"), Ok((0, 5)));
        for bad in ["", "root", "1:", ":1", "1:2:3", "-1", "4294967295", "+1"] {
            assert!(owner(bad).is_err(), "{bad}");
        }
        let mode: FileMode = "640".parse().unwrap();
        assert_eq!((mode.file(), mode.directory()), (0o640, 0o750));
        for bad in ["", "8", "64", "0o644", "77777", "a+x", "-644"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<FileMode>("4096").is_err());
    }

    #[test]
    fn notices_are_bounded() {
        let mut report = CopyReport::default();
        for n in 0..50 {
            report.skip(|| n.to_string());
        }
        let mut sum = CopyReport::default();
        sum.skip(|| "x".into());
        sum.absorb_skipped(report);
        assert_eq!((sum.skipped, sum.notices.len()), (51, 20));
    }
}
