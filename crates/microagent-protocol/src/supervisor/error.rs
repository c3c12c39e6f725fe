//! A failure, as it crosses the process boundary.

use serde::{Deserialize, Serialize};

/// What kind of failure it was, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was named does not exist.
    NotFound,
    /// It cannot be done in the present state.
    Conflict,
    /// The request is wrong.
    Invalid,
    /// This host or backend cannot do it.
    Unsupported,
    /// It may work when tried again.
    Transient,
    /// It will fail the same way again.
    Permanent,
    /// A defect of microagent.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::NotFound,
        Self::Conflict,
        Self::Invalid,
        Self::Unsupported,
        Self::Transient,
        Self::Permanent,
        Self::Internal,
    ];
}

/// A failure that can cross a process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[error("{message}{}", after(.message, .remedy.as_deref()))]
pub struct ErrorReport {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: who, what, why.
    pub message: String,
    /// For people: now what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Whether trying again may help.
    #[serde(default)]
    pub retryable: bool,
    /// More to look at: the end of the console or the VMM's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The remedy as it goes on behind the message: as a sentence behind one.
fn after(message: &str, remedy: Option<&str>) -> String {
    let between = if message.ends_with('.') { " " } else { "; " };
    remedy.map_or_else(String::new, |remedy| format!("{between}{remedy}"))
}

impl ErrorReport {
    /// A report with a kind and a message; transient ones are retryable.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            remedy: None,
            retryable: kind == ErrorKind::Transient,
            detail: None,
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same with more to look at.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_goes_on_where_the_message_ends() {
        let report = |message: &str| ErrorReport::new(ErrorKind::Invalid, message);
        assert_eq!(report("It broke.").to_string(), "It broke.");
        let told = report("It broke.").remedy("Mend it.").to_string();
        assert_eq!(told, "It broke. Mend it.");
        let told = report("it broke").remedy("mend it").to_string();
        assert_eq!(told, "it broke; mend it");
    }
}
