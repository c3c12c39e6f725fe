//! Choosing and ordering rows of a list.

use std::{fmt, str::FromStr};

use microagent_protocol::{NetworkMode, State};

use super::WorkspaceSummary;
use crate::supervise::RestartPolicy;

/// Which workspaces are wanted, by one field: `state=running`, `name=agent-*`.
///
/// ```
/// use microagent::WorkspaceFilter;
///
/// assert!("state=running".parse::<WorkspaceFilter>().is_ok());
/// let error = "colour=red".parse::<WorkspaceFilter>().unwrap_err();
/// assert!(error.to_string().contains("use state, name, image, network or restart"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkspaceFilter {
    /// It is in this state.
    State(State),
    /// Its name is like this; `*` stands for any text.
    Name(String),
    /// Its image's reference is like this; `*` stands for any text.
    Image(String),
    /// It is connected so.
    Network(NetworkMode),
    /// `supervise` treats it so.
    Restart(RestartPolicy),
}

impl WorkspaceFilter {
    /// Whether it holds for a workspace.
    #[must_use]
    pub fn holds(&self, row: &WorkspaceSummary) -> bool {
        match self {
            Self::State(state) => row.state == *state,
            Self::Name(pattern) => is_like(row.name.as_str(), pattern),
            Self::Image(pattern) => is_like(&row.image, pattern),
            Self::Network(mode) => row.network == Some(*mode),
            Self::Restart(policy) => row.restart == *policy,
        }
    }

    /// Whether of the filters for each field one holds.
    #[must_use]
    pub fn all_hold(filters: &[Self], row: &WorkspaceSummary) -> bool {
        filters.iter().all(|filter| {
            filters
                .iter()
                .filter(|other| std::mem::discriminant(*other) == std::mem::discriminant(filter))
                .any(|other| other.holds(row))
        })
    }
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
pub(crate) fn is_like(text: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return text == pattern;
    };
    let Some(text) = text.strip_prefix(first) else {
        return false;
    };
    let (middles, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let mut at = 0;
    // The first place of each is as good as any other.
    for middle in middles.split('*').filter(|middle| !middle.is_empty()) {
        match text[at..].find(middle) {
            Some(found) => at += found + middle.len(),
            None => return false,
        }
    }
    text[at..].ends_with(last)
}

/// Not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a filter: {reason}")]
pub struct InvalidFilter {
    input: String,
    reason: String,
}

impl FromStr for WorkspaceFilter {
    type Err = InvalidFilter;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: String| InvalidFilter {
            input: input.to_owned(),
            reason,
        };
        let (field, value) = input
            .split_once('=')
            .ok_or_else(|| invalid("write FIELD=VALUE, such as state=running".to_owned()))?;
        Ok(match field {
            "state" => Self::State(state(value).map_err(invalid)?),
            "name" => Self::Name(value.to_owned()),
            "image" => Self::Image(value.to_owned()),
            "network" => Self::Network(parse(value).map_err(invalid)?),
            "restart" => Self::Restart(parse(value).map_err(invalid)?),
            _ => {
                let reason =
                    "it names no field that is known; use state, name, image, network or restart";
                return Err(invalid(reason.to_owned()));
            }
        })
    }
}

fn state(value: &str) -> Result<State, String> {
    State::ALL
        .into_iter()
        .find(|state| state.to_string() == value)
        .ok_or_else(|| {
            let all: Vec<_> = State::ALL.map(|state| state.to_string()).into();
            format!("{value:?} is not a state; use one of {}", all.join(", "))
        })
}

fn parse<T: FromStr<Err: fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

/// What a list is ordered by; equal ones by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortKey {
    /// The name.
    #[default]
    Name,
    /// The state, in the order of a life.
    State,
    /// The image's reference.
    Image,
    /// When it was made, newest first.
    Created,
    /// When something happened to it last, newest first.
    Observed,
}

impl SortKey {
    /// Puts `rows` in this order.
    pub fn sort(self, rows: &mut [WorkspaceSummary]) {
        rows.sort_by(|a, b| {
            let by = match self {
                Self::Name => std::cmp::Ordering::Equal,
                Self::State => place(a.state).cmp(&place(b.state)),
                Self::Image => a.image.cmp(&b.image),
                Self::Created => b.created_at.cmp(&a.created_at),
                Self::Observed => b.observed_at.cmp(&a.observed_at),
            };
            by.then_with(|| a.name.cmp(&b.name))
        });
    }
}

fn place(state: State) -> usize {
    State::ALL
        .iter()
        .position(|other| *other == state)
        .unwrap_or(State::ALL.len())
}

/// Nothing to order by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is nothing to order by; use name, state, image, created or observed")]
pub struct InvalidSortKey {
    input: String,
}

impl FromStr for SortKey {
    type Err = InvalidSortKey;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        Ok(match input {
            "name" => Self::Name,
            "state" => Self::State,
            "image" => Self::Image,
            "created" => Self::Created,
            "observed" => Self::Observed,
            _ => {
                return Err(InvalidSortKey {
                    input: input.to_owned(),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn row(name: &str, state: State, created: u64) -> WorkspaceSummary {
        WorkspaceSummary {
            name: name.parse().unwrap(),
            state,
            image: "docker.io/library/debian:12".to_owned(),
            backend: None,
            network: Some(NetworkMode::User),
            restart: RestartPolicy::Never,
            ephemeral: false,
            created_at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(created)).into()),
            observed_at: None,
            damage: None,
        }
    }

    fn chosen(filters: &[&str]) -> Vec<String> {
        let rows = [
            row("agent-1", State::Running, 1),
            row("agent-2", State::Halted, 3),
            row("build", State::Failed, 2),
        ];
        let filters: Vec<WorkspaceFilter> =
            filters.iter().map(|text| text.parse().unwrap()).collect();
        rows.iter()
            .filter(|row| WorkspaceFilter::all_hold(&filters, row))
            .map(|row| row.name.to_string())
            .collect()
    }

    #[test]
    fn one_of_a_fields_filters_must_hold_and_every_field() {
        assert_eq!(chosen(&[]), ["agent-1", "agent-2", "build"]);
        assert_eq!(chosen(&["name=agent-*"]), ["agent-1", "agent-2"]);
        assert_eq!(
            chosen(&["state=running", "state=failed"]),
            ["agent-1", "build"]
        );
        assert_eq!(
            chosen(&["state=running", "state=failed", "name=*-1"]),
            ["agent-1"]
        );
        assert_eq!(
            chosen(&["image=*debian*", "restart=never", "network=user"]).len(),
            3
        );
        assert!(chosen(&["network=isolated"]).is_empty());
    }

    #[test]
    fn patterns_are_whole_texts_with_stars() {
        for (text, pattern, is) in [
            ("abc", "abc", true),
            ("abc", "ab", false),
            ("abc", "a*", true),
            ("abc", "*c", true),
            ("abc", "a*c", true),
            ("abc", "a*b*c", true),
            ("abc", "*", true),
            ("ab", "ab*b", false),
            ("a", "a*a", false),
            ("axbxc", "a*b*x*c", true),
            ("", "*", true),
        ] {
            assert_eq!(is_like(text, pattern), is, "{text} {pattern}");
        }
    }

    #[test]
    fn bad_filters_say_what_would_be_right() {
        for (text, words) in [
            ("running", "FIELD=VALUE"),
            ("state=asleep", "quarantined"),
            ("network=bridge", "isolated"),
            ("restart=sometimes", "on-failure"),
        ] {
            let error = text.parse::<WorkspaceFilter>().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(text), "{error}");
        }
        assert!("size".parse::<SortKey>().is_err());
    }

    #[test]
    fn rows_are_ordered() {
        let names = |key: &str| {
            let mut rows = [
                row("b", State::Running, 1),
                row("a", State::Failed, 2),
                row("c", State::Prepared, 3),
            ];
            key.parse::<SortKey>().unwrap().sort(&mut rows);
            rows.map(|row| row.name.to_string()).concat()
        };
        assert_eq!(names("name"), "abc");
        assert_eq!(names("state"), "cba");
        assert_eq!(names("created"), "cab");
        assert_eq!(names("image"), "abc");
    }
}
