//! Output kept for a result: bounded, and exact whatever its bytes are.

use serde::{Deserialize, Serialize};

/// How [`CapturedOutput::data`] is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OutputEncoding {
    /// The bytes were valid UTF-8 and stand as they are.
    Utf8,
    /// The bytes were not valid UTF-8 and are written in base64 (RFC 4648 §4).
    Base64,
}

/// The kept part of a stream: its first bytes up to a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CapturedOutput {
    /// How `data` is written.
    pub encoding: OutputEncoding,
    /// The kept bytes.
    pub data: String,
    /// How many bytes the stream had in all.
    pub total_bytes: u64,
    /// Whether bytes were left out of `data`.
    pub truncated: bool,
}
